"""vLLM's command line and environment, as functions of the configuration."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from engines.config import EngineConfig
from engines.errors import ConfigError, EngineDown
from engines.profiles import PROFILES
from engines.vllm import PLUGIN_DIR, Build, VllmEngine, arguments, build_of, environment, family_of

CPU, CUDA = Build("0.32.0", is_cpu=True), Build("0.26.0", is_cpu=False)
FAMILY = PROFILES["qwen3_vl"]


def words(build: Build = CPU, **config: Any) -> tuple[str, ...]:
    return arguments("small", EngineConfig(model="m", **config), 1234, build, FAMILY)


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def value(flag: str, command: tuple[str, ...]) -> str:
    return command[command.index(flag) + 1]


def test_the_base_is_served_under_its_version_on_loopback() -> None:
    command = words()
    assert value("--served-model-name", command) == "small@0"
    assert value("--host", command) == "127.0.0.1"
    assert value("--port", command) == "1234"


@pytest.mark.parametrize(("asked", "passed"), [(1, "1"), (5, "8"), (16, "16"), (17, "32"), (400, "512")])
def test_the_rank_is_rounded_up_to_one_that_vllm_has(asked: int, passed: str) -> None:
    assert value("--max-lora-rank", words(max_lora_rank=asked)) == passed


def test_shards_are_asked_for_only_where_there_are_several() -> None:
    assert value("--tensor-parallel-size", words(CUDA, tensor_parallel=4)) == "4"
    assert "--tensor-parallel-size" not in words(CUDA)


def test_one_slot_is_never_pinned() -> None:
    command = words(max_loras=4)
    assert value("--max-loras", command) == value("--max-cpu-loras", command) == "5"
    assert environment(EngineConfig(model="m", max_loras=4), CPU, FAMILY)["TANDEM_MAX_ADAPTERS"] == "4"


def test_image_placeholders_are_never_sampled() -> None:
    module, name = value("--logits-processors", words()).split(":")
    source = (PLUGIN_DIR / f"{module.replace('.', '/')}.py").read_text()
    assert f"class {name}(" in source
    passed = environment(EngineConfig(model="m"), CPU, FAMILY)["TANDEM_NEVER_SAMPLED"]
    assert tuple(json.loads(passed)) == FAMILY.vision_tokens


def test_an_engine_with_room_for_rollouts_says_what_it_sampled_from_and_lets_users_go_first() -> None:
    command = words(reserved_for_rollout=2)
    assert value("--logprobs-mode", command) == "processed_logprobs"
    assert value("--scheduling-policy", command) == "priority"
    assert not {"--logprobs-mode", "--scheduling-policy"} & set(words())


def test_eager_mode_and_float32_are_for_the_cpu_only() -> None:
    assert "--enforce-eager" in words(CPU)
    assert "--enforce-eager" not in words(CUDA)
    assert value("--dtype", words(CPU)) == "float32"
    assert value("--dtype", words(CUDA)) == "auto"
    assert value("--dtype", words(CPU, dtype="bfloat16")) == "bfloat16"


def test_extra_arguments_follow_ours_unchanged() -> None:
    args = {"gpu-memory-utilization": 0.5, "enable_x": True, "y": False, "sizes": [1, 8], "--z": {"a": 1}}
    ours, all_of_it = words(), words(args=args)
    assert all_of_it[: len(ours)] == ours
    assert " ".join(all_of_it[len(ours) :]) == '--gpu-memory-utilization 0.5 --enable-x --no-y --sizes 1 8 --z {"a": 1}'


@pytest.mark.parametrize(
    "key",
    ["host", "--middleware", "served_model_name", "max-loras", "api-key", "model", "dtype", "max_model_len", "config",
     "no-enable-prefix-caching", "limit-mm-per-prompt.image", "middlew", "tensor-parallel-size", "host=0.0.0.0", "--",
     "logits-processors", "logprobs_mode", "scheduling-policy",
     ""],
)  # fmt: skip
def test_arguments_that_are_ours_are_refused_before_anything_starts(key: str) -> None:
    with pytest.raises(ValidationError, match=r"args\n"):
        EngineConfig(model="m", args={key: "x"})


def test_every_flag_that_we_write_is_ours_but_eager_mode() -> None:
    written = [word for word in words(CPU, quantization="fp8", reserved_for_rollout=1) if word.startswith("--")]
    for flag in set(written) - {"--enforce-eager"}:
        with pytest.raises(ValidationError):
            EngineConfig(model="m", args={flag: "x"})
    assert EngineConfig(model="m", args={"enforce-eager": True}).args


def test_a_model_of_another_family_than_configured_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3VLForConditionalGeneration"]}')
    config = EngineConfig(model=str(tmp_path), family="qwen3_vl")
    assert family_of("small", config) is FAMILY
    other = dataclasses.replace(PROFILES["qwen3_vl"], name="other")
    monkeypatch.setattr("engines.model.profile_of", lambda _: other)
    with pytest.raises(ConfigError, match=r"engines\.small\.family: .* is a other, not a qwen3_vl"):
        family_of("small", config)


def test_no_secret_is_on_the_command_line_or_in_the_launch_environment() -> None:
    assert not any("token" in word.lower() and "details" not in word for word in words())
    assert not any("TOKEN" in name for name in environment(EngineConfig(model="m"), CPU, FAMILY))


def test_the_cpu_environment_is_for_the_cpu_only_and_the_configurations_own_wins(tmp_path: Path) -> None:
    config = EngineConfig(model=str(tmp_path), env={"VLLM_CPU_KVCACHE_SPACE": "2", "PYTHONPATH": "/theirs"})
    env = environment(config, CPU, FAMILY)
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert env["TORCHDYNAMO_DISABLE"] == "1"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["PYTHONPATH"].split(":")[:2] == [str(PLUGIN_DIR), "/theirs"]
    assert "TORCHDYNAMO_DISABLE" not in environment(EngineConfig(model="hub/id"), CUDA, FAMILY)
    assert "HF_HUB_OFFLINE" not in environment(EngineConfig(model="hub/id"), CUDA, FAMILY)


async def test_an_interpreter_without_vllm_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineDown, match="cannot be run"):
        await build_of(str(tmp_path / "python"))
    bare = script(tmp_path / "bare", f'exec {sys.executable} -I -S "$@"')
    with pytest.raises(EngineDown, match="has no vLLM"):
        await build_of(str(bare))


async def test_an_interpreter_that_talks_nonsense_is_named(tmp_path: Path) -> None:
    odd = script(tmp_path / "odd", "echo no json")
    with pytest.raises(EngineDown, match="did not say which vLLM it has") as caught:
        await build_of(str(odd))
    assert caught.value.detail == "no json\n"


async def test_an_interpreter_that_is_asked_in_vain_is_ended(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")
    asking = asyncio.create_task(build_of(str(script(tmp_path / "slow", f"echo $$ > {tmp_path}/pid; exec sleep 60"))))
    pid = int(await asyncio.to_thread((tmp_path / "pid").read_text))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    async with asyncio.timeout(10):
        while psutil.pid_exists(pid):  # noqa: ASYNC110  another process's end has no event of ours
            await asyncio.sleep(0.02)


async def test_a_model_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = EngineConfig(model=str(tmp_path / "no-model"))
    with pytest.raises(EngineDown, match="no-model is no directory"):
        await VllmEngine("small", config, tmp_path).start()


@pytest.mark.vllm
async def test_our_own_interpreter_has_vllm() -> None:
    assert (await build_of(sys.executable)).version


def test_the_plugin_is_whole() -> None:
    (entry_points,) = PLUGIN_DIR.glob("*.dist-info/entry_points.txt")
    module, _, name = entry_points.read_text().split("=")[1].strip().partition(":")
    source = (PLUGIN_DIR / f"{module.replace('.', '/')}.py").read_text()
    assert f"class {name}:" in source
    assert not [path for path in PLUGIN_DIR.rglob("*.py") if "import engines" in path.read_text()]
