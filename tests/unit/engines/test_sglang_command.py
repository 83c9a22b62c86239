"""SGLang's command line and environment, as functions of the configuration."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from toys import TOYS

from engines.config import EngineConfig
from engines.errors import ConfigError, EngineDown
from engines.profiles import PROFILES
from engines.schemes import MachineKind
from engines.sglang import PLUGIN_DIR, SglangEngine, arguments, check_interpreter, environment

FAMILY = PROFILES["qwen3_vl"]


def words(**config: Any) -> tuple[str, ...]:
    return arguments("small", EngineConfig(model="m", kind="sglang", **config), 1234, FAMILY)


def value(flag: str, command: tuple[str, ...]) -> str:
    return command[command.index(flag) + 1]


def variables(**config: Any) -> dict[str, str]:
    return environment("small", EngineConfig(model="m", kind="sglang", **config), FAMILY)


def test_the_base_is_served_under_its_version_on_loopback() -> None:
    command = words()
    assert value("--served-model-name", command) == "small@0"
    assert (value("--host", command), value("--port", command)) == ("127.0.0.1", "1234")
    assert variables()["TANDEM_BASE"] == "small@0"


def test_one_slot_is_the_bases() -> None:
    command = words(max_loras=4)
    assert value("--max-loras-per-batch", command) == value("--max-loaded-loras", command) == "5"
    assert variables(max_loras=4)["TANDEM_MAX_ADAPTERS"] == "4"


def test_the_gate_refuses_what_is_above_the_configured_rank_not_the_rounded_one() -> None:
    assert value("--max-lora-rank", words(max_lora_rank=17)) == "32"
    assert variables(max_lora_rank=17)["TANDEM_MAX_LORA_RANK"] == "17"


def test_only_the_familys_own_linears_take_adapters() -> None:
    command = words()
    first = command.index("--lora-target-modules") + 1
    assert command[first : first + 7] == FAMILY.target_modules
    assert tuple(json.loads(variables()["TANDEM_TARGET_MODULES"])) == FAMILY.target_modules
    assert tuple(json.loads(variables()["TANDEM_NEVER_SAMPLED"])) == FAMILY.vision_tokens


def test_an_engine_with_room_for_rollouts_says_what_it_sampled_from_and_lets_users_go_first() -> None:
    rollouts, users = words(reserved_for_rollout=2), words()
    assert value("--default-priority-value", rollouts) == "0"
    assert {"--enable-priority-scheduling", "--schedule-low-priority-values-first"} <= set(rollouts)
    assert not {"--enable-priority-scheduling", "--default-priority-value"} & set(users)
    assert "SGLANG_RETURN_ORIGINAL_LOGPROB" not in variables(reserved_for_rollout=2)
    assert variables()["SGLANG_RETURN_ORIGINAL_LOGPROB"] == "1"


def test_extra_arguments_follow_ours_unchanged() -> None:
    args = {"mem-fraction-static": 0.5, "disable_radix_cache": True, "y": False, "sizes": [1, 8], "--z": {"a": 1}}
    ours, all_of_it = words(), words(args=args)
    assert all_of_it[: len(ours)] == ours
    assert (
        " ".join(all_of_it[len(ours) :]) == '--mem-fraction-static 0.5 --disable-radix-cache --sizes 1 8 --z {"a": 1}'
    )


@pytest.mark.parametrize(
    "key",
    ["host", "--api-key", "served_model_name", "max-loras-per-batch", "model", "model-path", "dtype", "config",
     "context-length", "tokenizer-worker-num", "tp", "admin-api", "enable-custom-logit-processor", "lora-paths",
     "skip-server-warmup", "enable-http2", "host=0.0.0.0", ""],
)  # fmt: skip
def test_arguments_that_are_ours_are_refused_before_anything_starts(key: str) -> None:
    with pytest.raises(ValidationError, match=r"args\n"):
        EngineConfig(model="m", kind="sglang", args={key: "x"})


def test_every_flag_that_we_write_is_ours_but_the_log_level() -> None:
    written = [
        word for word in words(quantization="fp8", reserved_for_rollout=1, tensor_parallel=2) if word[:2] == "--"
    ]
    for flag in set(written) - {"--log-level"}:
        with pytest.raises(ValidationError):
            EngineConfig(model="m", kind="sglang", args={flag: "x"})
    EngineConfig(model="m", kind="sglang", args={"log-level": "info", "enable-deterministic-inference": True})


def test_shards_are_asked_for_only_where_there_are_several() -> None:
    assert value("--tp-size", words(tensor_parallel=4)) == "4"
    assert "--tp-size" not in words()


async def test_a_machine_without_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.sglang.here", lambda: MachineKind.CPU_AVX2)
    engine = SglangEngine("small", EngineConfig(model=str(TOYS["qwen3_vl"].base), kind="sglang"), tmp_path)
    with pytest.raises(ConfigError, match=r"cannot serve .* on cpu-avx2 .*CUDA kernels only"):
        await engine.launch(1)


async def test_a_family_that_sglang_does_not_serve_with_adapters_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.sglang.here", lambda: MachineKind.GPU_HOPPER)
    engine = SglangEngine("small", EngineConfig(model=str(TOYS["internvl"].base), kind="sglang"), tmp_path)
    with pytest.raises(ConfigError, match=r"engines\.small\.model: sglang cannot serve internvl"):
        await engine.launch(1)


def test_the_python_path_is_the_sections_or_else_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    assert variables(env={"PYTHONPATH": "/theirs"})["PYTHONPATH"] == f"{PLUGIN_DIR}:/theirs"
    assert variables()["PYTHONPATH"] == f"{PLUGIN_DIR}:/ours"


def test_no_secret_is_on_the_command_line_or_in_the_launch_environment() -> None:
    assert not any("key" in word.lower() for word in words())
    assert not any("TOKEN" in name for name in variables())


async def test_an_interpreter_without_sglang_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineDown, match="cannot be run"):
        await check_interpreter(str(tmp_path / "python"), {})
    with pytest.raises(EngineDown, match="has no SGLang"):
        await check_interpreter(sys.executable, {"PYTHONPATH": str(PLUGIN_DIR)})


async def test_a_model_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = EngineConfig(model=str(tmp_path / "no-model"), kind="sglang")
    with pytest.raises(EngineDown, match="no-model is no directory"):
        await SglangEngine("small", config, tmp_path).start()


def test_the_plugin_imports_nothing_of_tandem_and_sglang_in_two_places_only() -> None:
    sources = {path.name: path.read_text() for path in PLUGIN_DIR.rglob("*.py")}
    assert not [name for name, text in sources.items() if "import engines" in text or "from engines" in text]
    assert {name for name, text in sources.items() if "from sglang" in text} == {"__main__.py", "inside.py"}
