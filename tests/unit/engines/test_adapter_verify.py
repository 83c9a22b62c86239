"""What `verify` must let pass."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tiny_adapter import (
    ATTENTION,
    Q_A,
    Q_B,
    Q_PROJ,
    RANK,
    half_tensors,
    linear_shapes,
    lora_tensors,
    manifest_of,
    peft_config,
    write_adapter,
    write_manifested,
)
from verifying import accepted

from engines.adapter import BaseModel


def test_plain_peft_adapter_passes(adapter_dir: Path, base: BaseModel) -> None:
    verified = accepted(write_adapter(adapter_dir), base)
    assert verified.rank == RANK
    assert verified.alpha == 2 * RANK
    assert verified.modules == tuple(sorted(linear_shapes()))
    assert verified.manifest is None
    assert verified.base_hash == base.base_hash
    weights = (adapter_dir / "adapter_model.safetensors").read_bytes()
    assert verified.weights_sha256 == hashlib.sha256(weights).hexdigest()


def test_adapter_with_its_manifest_passes(adapter_dir: Path, base: BaseModel) -> None:
    verified = accepted(write_manifested(adapter_dir, base), base)
    assert verified.manifest == manifest_of(adapter_dir, base)


def test_near_zero_adapter_passes(adapter_dir: Path, base: BaseModel) -> None:
    tensors = {name: (dtype, values * 0) for name, (dtype, values) in lora_tensors().items()}
    assert accepted(write_adapter(adapter_dir, tensors), base).modules


def test_part_of_the_linears_suffices(adapter_dir: Path, base: BaseModel) -> None:
    write_adapter(adapter_dir, lora_tensors(ATTENTION), peft_config(target_modules=list(ATTENTION)))
    assert {name.rsplit(".", 1)[-1] for name in accepted(adapter_dir, base).modules} == set(ATTENTION)


def test_target_modules_may_be_longer_names(adapter_dir: Path, base: BaseModel) -> None:
    tensors = {name: lora_tensors()[name] for name in (Q_A, Q_B)}
    write_adapter(adapter_dir, tensors, peft_config(target_modules=["0.self_attn.q_proj"]))
    assert accepted(adapter_dir, base).modules == (Q_PROJ,)


def test_rslora_passes(adapter_dir: Path, base: BaseModel) -> None:
    assert accepted(write_adapter(adapter_dir, config=peft_config(use_rslora=True)), base)


def test_task_type_may_be_absent(adapter_dir: Path, base: BaseModel) -> None:
    assert accepted(write_adapter(adapter_dir, config=peft_config(task_type=None)), base)


@pytest.mark.parametrize("init", ["gaussian", "eva", "orthogonal", False])
def test_inits_that_leave_the_base_alone_pass(adapter_dir: Path, base: BaseModel, init: object) -> None:
    assert accepted(write_adapter(adapter_dir, config=peft_config(init_lora_weights=init)), base)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_passes(adapter_dir: Path, base: BaseModel, dtype: str) -> None:
    assert accepted(write_adapter(adapter_dir, half_tensors(dtype)), base)


def test_documentation_and_trainer_state_are_ignored(adapter_dir: Path, base: BaseModel) -> None:
    write_adapter(adapter_dir)
    for name in ("README.md", "LICENSE", "tokenizer.json", "chat_template.jinja", ".gitattributes"):
        (adapter_dir / name).write_text("documentation")
    (adapter_dir / "trainer_state").mkdir()
    (adapter_dir / "trainer_state" / "optimizer.pt").write_bytes(b"\x80\x04.")
    assert accepted(adapter_dir, base)
