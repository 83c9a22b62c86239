"""The scheme of a checkpoint, the kind of a machine, and what is refused before anything starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engines.config import EngineConfig
from engines.errors import BadRequest, ConfigError
from engines.schemes import (
    RULES,
    Combination,
    MachineKind,
    Scheme,
    check_scheme,
    cpu_kind,
    here,
    rule_against,
    scheme_of,
    scheme_of_config,
)
from engines.schemes.machine import kind_of_card
from engines.schemes.scheme import MEANINGS
from engines.vllm import Build, VllmEngine

WEIGHTS = Path(__file__).parents[3] / "learners" / "toy" / "weights"
FP8 = {"num_bits": 8, "type": "float"}
INT4, INT8 = ({"num_bits": bits, "type": "int", "strategy": "group"} for bits in (4, 8))


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


def mixed() -> dict[str, Any]:
    both = [compressed(INT4)["config_groups"]["group_0"], compressed(INT8, INT8)["config_groups"]["group_0"]]
    return {"quant_method": "compressed-tensors", "config_groups": dict(zip("ab", both, strict=True))}


@pytest.mark.parametrize(
    ("quantization", "scheme"),
    [
        (None, Scheme.UNQUANTIZED),
        (compressed(FP8 | {"strategy": "channel"}, FP8 | {"strategy": "token"}), Scheme.FP8),
        (compressed(FP8 | {"strategy": "tensor"}, FP8 | {"strategy": "tensor"}), Scheme.FP8_TENSOR),
        (compressed(FP8 | {"strategy": "channel"}, FP8 | {"strategy": "tensor"}), Scheme.FP8_TENSOR),
        (compressed(FP8 | {"strategy": "block"}, FP8 | {"strategy": "group"}), Scheme.FP8_BLOCK),
        (compressed(FP8 | {"strategy": "channel"}), Scheme.UNKNOWN),
        (compressed(INT4), Scheme.W4A16),
        (compressed(INT8, INT8), Scheme.W8A8_INT8),
        (compressed(INT8), Scheme.UNKNOWN),
        (mixed(), Scheme.UNKNOWN),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, Scheme.FP8_BLOCK),
        ({"quant_method": "fp8", "activation_scheme": "static"}, Scheme.FP8_TENSOR),
        ({"quant_method": "gptq", "bits": 4}, Scheme.GPTQ),
        ({"quant_method": "gptq", "bits": 8}, Scheme.UNKNOWN),
        ({"quant_method": "awq", "bits": 4}, Scheme.AWQ),
        ({"quant_method": "awq", "w_bit": 4}, Scheme.AWQ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, Scheme.BITSANDBYTES),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": 3}}, Scheme.UNKNOWN),
        ({"quant_method": "compressed-tensors"}, Scheme.UNKNOWN),
        ({"quant_method": "something_new"}, Scheme.UNKNOWN),
        ({}, Scheme.UNKNOWN),
    ],
)  # fmt: skip
def test_the_scheme_is_read_from_the_checkpoints_config(quantization: dict[str, Any] | None, scheme: Scheme) -> None:
    assert scheme_of_config({"quantization_config": quantization}) is scheme


def test_a_quantization_config_that_is_no_object_is_refused() -> None:
    with pytest.raises(BadRequest, match="quantization_config is no object"):
        scheme_of_config({"quantization_config": "fp8"})


@pytest.mark.parametrize(
    ("asked", "scheme"),
    [("auto", Scheme.UNQUANTIZED), ("fp8", Scheme.ONLINE_FP8), ("fp8_per_channel", Scheme.ONLINE_FP8_CHANNEL),
     ("mxfp8", Scheme.ONLINE_FP8_BLOCK), ("bitsandbytes", Scheme.BITSANDBYTES), ("torchao", Scheme.UNKNOWN)],
)  # fmt: skip
def test_what_the_section_asks_for_counts_over_an_unquantized_checkpoint(asked: str, scheme: Scheme) -> None:
    assert scheme_of("small", EngineConfig(model=str(WEIGHTS / "base"), quantization=asked)) is scheme


def test_a_quantized_checkpoint_stays_what_it_is_under_any_name_of_its_method() -> None:
    config = EngineConfig(model=str(WEIGHTS / "base-fp8"), quantization="compressed-tensors")
    assert scheme_of("small", config) is Scheme.FP8


def test_a_model_that_is_not_here_is_of_no_known_scheme_and_is_not_refused() -> None:
    config = EngineConfig(model="some-org/some-model")
    assert scheme_of("small", config) is Scheme.UNKNOWN
    for machine in MachineKind:
        check_scheme("small", config, machine)


@pytest.mark.parametrize("text", ["", "[]", '{"quantization_config": 3}'])
def test_a_config_that_cannot_be_read_is_refused_by_the_sections_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"engines\.small\.model: "):
        scheme_of("small", EngineConfig(model=str(tmp_path)))


CPU_REFUSALS = [
    ({"quantization_config": compressed(INT4)}, MachineKind.CPU_AVX2),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, MachineKind.CPU_AVX2),
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, MachineKind.CPU_AVX2),
    ({"quantization_config": compressed(INT8, INT8)}, MachineKind.CPU_AVX512),
    ({"quantization_config": {"quant_method": "fp8"}}, MachineKind.CPU_AMX),
    ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, MachineKind.CPU_AVX512),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, MachineKind.CPU_AVX512),
]


@pytest.fixture(params=CPU_REFUSALS)
def refused(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[EngineConfig, MachineKind]:
    values, machine = request.param
    family = {"architectures": ["Qwen3VLForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(family | values))
    return EngineConfig(model=str(tmp_path)), machine


def test_what_a_cpu_cannot_serve_is_refused_with_what_why_and_what_to_do(
    refused: tuple[EngineConfig, MachineKind],
) -> None:
    config, machine = refused
    with pytest.raises(ConfigError) as caught:
        check_scheme("small", config, machine)
    message = caught.value.message
    assert message.startswith("engines.small.model: vllm cannot serve ")
    assert str(machine) in message
    assert config.model in message
    assert "; use " in message or "; set " in message


def test_a_gpu_is_refused_none_of_it(refused: tuple[EngineConfig, MachineKind]) -> None:
    check_scheme("small", refused[0], MachineKind.GPU_HOPPER)


def test_four_bits_are_served_where_the_processor_has_the_operator(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": compressed(INT4)}))
    check_scheme("small", EngineConfig(model=str(tmp_path)), MachineKind.CPU_AVX512)


@pytest.mark.parametrize(("family", "refused"), [("internvl", "its LoRA layers do not fit"), ("qwen3_vl", None)])
def test_sglang_serves_no_internvl(family: str, refused: str | None) -> None:
    rule = rule_against(Combination("sglang", family, Scheme.UNQUANTIZED, MachineKind.GPU_HOPPER))
    assert (rule is None) if refused is None else re.search(refused, rule.why)


def test_a_remote_server_is_used_without_adapters() -> None:
    rule = rule_against(Combination("remote", "", Scheme.UNKNOWN, MachineKind.ELSEWHERE))
    assert rule is not None
    assert rule.base_is_served


async def test_a_refused_engine_spawns_no_process(
    refused: tuple[EngineConfig, MachineKind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, machine = refused
    monkeypatch.setattr("engines.vllm.build_of", _cpu_build)
    monkeypatch.setattr("engines.vllm.cpu_kind", lambda: machine)
    engine = VllmEngine("small", config, tmp_path)
    with pytest.raises(ConfigError, match="cannot serve"):
        await engine.start()
    assert not engine.log_path.exists()
    await engine.stop()


async def _cpu_build(_: str) -> Build:
    return Build("0.32.0", is_cpu=True)


def test_every_rule_says_why_and_what_to_do_instead() -> None:
    for rule in RULES:
        assert rule.why
        assert rule.instead
        assert not rule.why.endswith(".")


def test_every_scheme_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Scheme)


@pytest.mark.parametrize(
    ("flags", "kind"),
    [("fpu avx2 sse", "cpu-avx2"), ("avx2 avx512f avx512_vnni", "cpu-avx512"),
     ("avx2 avx512f amx_tile", "cpu-amx"), ("sse2", "cpu-other")],
)  # fmt: skip
def test_a_cpu_is_named_by_its_widest_instructions(tmp_path: Path, flags: str, kind: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    assert cpu_kind(tmp_path) == here(tmp_path) == kind


def test_a_machine_with_a_gpu_is_named_by_its_card(tmp_path: Path) -> None:
    card = tmp_path / "driver" / "nvidia" / "gpus" / "0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t 36\n")
    assert here(tmp_path) is MachineKind.GPU_HOPPER


@pytest.mark.parametrize(
    ("name", "kind"),
    [("NVIDIA H200", "gpu-hopper"), ("NVIDIA GeForce RTX 4090", "gpu-ada"), ("NVIDIA L40S", "gpu-ada"),
     ("NVIDIA A100-SXM4-80GB", "gpu-ampere"), ("NVIDIA B200", "gpu-blackwell"), ("Tesla T4", "gpu-other")],
)  # fmt: skip
def test_a_card_is_of_its_generation(name: str, kind: str) -> None:
    assert kind_of_card(name) == kind
