"""SGLang as a back end: its command line and environment. Drives 0.5.17 (CUDA); does not import it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from engines.config import LORA_RANKS, EngineConfig
from engines.errors import EngineDown
from engines.flags import flag_of
from engines.model import check_model, family_of
from engines.profiles import FamilyProfile
from engines.schemes import check_scheme, here
from engines.served import Launch, ServedEngine

PLUGIN_DIR = Path(__file__).parent / "sglang_plugin"
ASK_TIMEOUT_S = 60.0
ENV = {
    # /health must ask the process, not the model: it would time out whenever the model is busy with something long.
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
_ASK_SGLANG = "import importlib.util, sys; sys.exit(0 if importlib.util.find_spec('sglang') else 3)"


class SglangEngine(ServedEngine):
    """One SGLang server with our gate in it."""

    log_noise = re.compile(r"UserWarning|warnings\.warn\(|resource_tracker|^\s*$")

    async def launch(self, port: int) -> Launch:
        check_model(self.name, self.config.model)
        family = family_of(self.name, self.config)
        check_scheme(self.name, self.config, await asyncio.to_thread(here))
        python = self.config.python or sys.executable
        env = environment(self.name, self.config, family)
        await check_interpreter(python, env)
        command = (python, "-m", "tandem_sglang_plugin", *arguments(self.name, self.config, port, family))
        return Launch(command, env)


async def check_interpreter(python: str, env: dict[str, str]) -> None:
    """Raises `EngineDown` unless `python` finds SGLang in this environment (it is not imported)."""
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-c", _ASK_SGLANG, stdin=asyncio.subprocess.DEVNULL, env={**os.environ, **env}
        )
    except OSError as error:
        raise EngineDown(f"{python} cannot be run: {error.strerror}; check the engine's `python`") from error
    try:
        code = await asyncio.wait_for(process.wait(), ASK_TIMEOUT_S)
    except TimeoutError as error:
        raise EngineDown(f"{python} did not say whether it has SGLang within {ASK_TIMEOUT_S:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0:
        raise EngineDown(
            f"{python} has no SGLang; install it in an environment of its own and name that by the engine's `python`, "
            "or by PYTHONPATH in its `env`"
        )


def arguments(name: str, config: EngineConfig, port: int, family: FamilyProfile) -> tuple[str, ...]:
    """SGLang's command line."""
    return (
        *("--model-path", config.model, "--served-model-name", f"{name}@0"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--log-level", "warning", "--skip-server-warmup"),  # our own first request warms it up
        *_rollout_arguments(config),
        *_lora_arguments(config, family),
        *_model_arguments(config),
        *_extra_arguments(config),
    )


def environment(name: str, config: EngineConfig, family: FamilyProfile) -> dict[str, str]:
    """What the engine's environment has over ours; the configuration's own `env` wins. PYTHONPATH is the section's or
    else ours, not both: SGLang and vLLM need other versions of the same packages."""
    env = {
        **ENV,
        "TANDEM_BASE": f"{name}@0",
        "TANDEM_MAX_ADAPTERS": str(config.max_loras),
        "TANDEM_MAX_LORA_RANK": str(config.max_lora_rank),
        "TANDEM_TARGET_MODULES": json.dumps(family.target_modules),
        "TANDEM_NEVER_SAMPLED": json.dumps(family.vision_tokens),
    }
    if not config.reserved_for_rollout:
        env["SGLANG_RETURN_ORIGINAL_LOGPROB"] = "1"  # else they are those after temperature, which rollouts need
    if Path(config.model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    env |= config.env
    theirs = config.env.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
    env["PYTHONPATH"] = os.pathsep.join(path for path in (str(PLUGIN_DIR), theirs) if path)
    return env


def _lora_arguments(config: EngineConfig, family: FamilyProfile) -> tuple[str, ...]:
    # One slot beyond the adapters that are pinned: requests for the bare base take one too.
    slots = str(config.max_loras + 1)
    rank = next((rank for rank in LORA_RANKS if rank >= config.max_lora_rank), LORA_RANKS[-1])
    return (
        *("--enable-lora", "--max-loras-per-batch", slots, "--max-loaded-loras", slots, "--max-lora-rank", str(rank)),
        *("--lora-target-modules", *family.target_modules),
    )


def _rollout_arguments(config: EngineConfig) -> tuple[str, ...]:
    # A queue in which users go before guests; a request that runs is not stopped for another.
    on = ("--enable-priority-scheduling", "--schedule-low-priority-values-first", "--disable-priority-preemption")
    return (*on, "--default-priority-value", "0") if config.reserved_for_rollout else ()


def _model_arguments(config: EngineConfig) -> tuple[str, ...]:
    return (
        *("--dtype", config.dtype, "--context-length", str(config.max_model_len)),
        *("--limit-mm-data-per-request", json.dumps({"image": config.max_images, "video": 0, "audio": 0})),
        *("--sampling-defaults", "openai", "--enable-cache-report"),
        *(() if config.quantization == "auto" else ("--quantization", config.quantization)),
        *(("--tp-size", str(config.tensor_parallel)) if config.tensor_parallel > 1 else ()),
    )


def _extra_arguments(config: EngineConfig) -> tuple[str, ...]:
    return tuple(word for key, value in config.args.items() for word in _argument(flag_of(key), value))


def _argument(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{flag}"] if value else []  # SGLang's switches have no opposite
    if isinstance(value, dict):
        return [f"--{flag}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}", str(value)]
