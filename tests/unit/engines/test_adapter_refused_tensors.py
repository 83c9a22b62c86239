"""What `verify` refuses of the tensors: names, shapes, dtypes and values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_adapter import (
    ATTENTION,
    HIDDEN,
    PREFIX,
    Q_A,
    Q_B,
    Q_PROJ,
    RANK,
    half_tensors,
    lora_tensors,
    peft_config,
    write_adapter,
)
from verifying import reason

from engines.adapter import BaseModel


def test_key_that_matches_no_module_is_refused(adapter_dir: Path, base: BaseModel) -> None:
    tensors = lora_tensors()
    for side in "AB":
        values = tensors.pop(f"{PREFIX}{Q_PROJ}.lora_{side}.weight")
        tensors[f"{PREFIX}model.language_model.layers.7.self_attn.q_proj.lora_{side}.weight"] = values
    assert "matches no module of the base" in reason(write_adapter(adapter_dir, tensors), base)


@pytest.mark.parametrize(
    "name",
    [
        f"{Q_PROJ}.lora_A.weight",
        f"{PREFIX}{Q_PROJ}.weight",
        f"{PREFIX}{Q_PROJ}.lora_A.default.weight",
        f"{PREFIX}{Q_PROJ}.lora_A.bias",
        f"{PREFIX}{Q_PROJ}.lora_magnitude_vector",
        f"{PREFIX}model.language_model.embed_tokens.lora_embedding_A",
        "",
    ],
)
def test_key_that_is_no_lora_weight_is_refused(adapter_dir: Path, base: BaseModel, name: str) -> None:
    tensors = lora_tensors() | {name: ("F32", np.zeros((RANK, HIDDEN), "<f4"))}
    assert "is no LoRA weight as PEFT names it" in reason(write_adapter(adapter_dir, tensors), base)


def test_vision_tower_keys_are_refused(adapter_dir: Path, base: BaseModel) -> None:
    name = f"{PREFIX}model.visual.blocks.0.attn.qkv.lora_A.weight"
    tensors = lora_tensors() | {name: ("F32", np.zeros((RANK, HIDDEN), "<f4"))}
    assert "adapts the vision tower" in reason(write_adapter(adapter_dir, tensors), base)


def test_key_outside_of_target_modules_is_refused(adapter_dir: Path, base: BaseModel) -> None:
    write_adapter(adapter_dir, config=peft_config(target_modules=list(ATTENTION)))
    assert "is not among the target_modules" in reason(adapter_dir, base)


def test_target_without_tensors_is_refused(adapter_dir: Path, base: BaseModel) -> None:
    write_adapter(adapter_dir, lora_tensors(ATTENTION))
    assert "has no tensor for 'gate_proj'" in reason(adapter_dir, base)


def test_file_without_tensors_is_refused(adapter_dir: Path, base: BaseModel) -> None:
    assert "holds no tensors" in reason(write_adapter(adapter_dir, {}), base)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (Q_A, (RANK, HIDDEN + 1)),
        (Q_A, (HIDDEN, RANK)),
        (Q_A, (RANK + 1, HIDDEN)),
        (Q_A, (RANK * HIDDEN,)),
        (Q_B, (HIDDEN - 1, RANK)),
        (Q_B, (0, RANK)),
    ],
)
def test_wrong_shape_is_refused(adapter_dir: Path, base: BaseModel, name: str, shape: tuple[int, ...]) -> None:
    tensors = lora_tensors() | {name: ("F32", np.zeros(shape, "<f4"))}
    message = reason(write_adapter(adapter_dir, tensors), base)
    assert f"'{name}' has shape {shape}" in message


@pytest.mark.parametrize(("name", "missing"), [(Q_A, "lora_A"), (Q_B, "lora_B")])
def test_half_a_pair_is_refused(adapter_dir: Path, base: BaseModel, name: str, missing: str) -> None:
    tensors = lora_tensors()
    del tensors[name]
    assert f"{Q_PROJ} has no {missing}" in reason(write_adapter(adapter_dir, tensors), base)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_nan_and_inf_are_refused(adapter_dir: Path, base: BaseModel, dtype: str, value: float) -> None:
    tensors = half_tensors(dtype) if dtype != "F32" else lora_tensors()
    bits = np.array([value], "<f4").view("<u4") >> 16
    bad = {"F32": np.array([value], "<f4"), "F16": np.array([value], "<f2"), "BF16": bits.astype("<u2")}[dtype]
    tensors[Q_B][1][-1, -1] = bad[0]
    assert f"'{Q_B}' holds NaN or Inf" in reason(write_adapter(adapter_dir, tensors), base)


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("F64", "<f8"), ("I8", "i1"), ("F8_E4M3", "u1")])
def test_other_dtypes_are_refused(adapter_dir: Path, base: BaseModel, dtype: str, numpy_dtype: str) -> None:
    tensors = lora_tensors() | {Q_A: (dtype, np.zeros((RANK, HIDDEN), numpy_dtype))}
    assert f"has dtype {dtype}" in reason(write_adapter(adapter_dir, tensors), base)
