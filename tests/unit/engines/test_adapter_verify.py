"""Every refusal of `verify`, and what must pass."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_adapter import (
    ATTENTION,
    HIDDEN,
    PREFIX,
    RANK,
    TARGETS,
    linear_shapes,
    lora_tensors,
    manifest_of,
    peft_config,
    write_adapter,
    write_manifested,
)

from engines.adapter import BaseModel, VerifiedAdapter, verify
from engines.errors import AdapterRefused

QKV = "model.language_model.layers.0.self_attn.q_proj"
Q_A = f"{PREFIX}{QKV}.lora_A.weight"
Q_B = f"{PREFIX}{QKV}.lora_B.weight"


def reason(directory: Path, base: BaseModel, max_rank: int = 16) -> str:
    with pytest.raises(AdapterRefused) as caught:
        verify(directory, base, max_rank)
    return caught.value.message


def accepted(directory: Path, base: BaseModel, max_rank: int = 16) -> VerifiedAdapter:
    return verify(directory, base, max_rank)


# What passes


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
    assert accepted(adapter_dir, base).modules == (QKV,)


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


# The directory


def test_directory_must_exist(adapter_dir: Path, base: BaseModel) -> None:
    assert "is not a directory" in reason(adapter_dir, base)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_file_is_refused(adapter_dir: Path, base: BaseModel, name: str) -> None:
    write_adapter(adapter_dir)
    (adapter_dir / name).unlink()
    assert reason(adapter_dir, base).startswith(f"{name} is missing")


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "training_args.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl", "a.PICKLE", "a.npz"]
)
def test_pickles_are_refused(adapter_dir: Path, base: BaseModel, name: str) -> None:
    write_adapter(adapter_dir)
    (adapter_dir / name).write_bytes(b"")
    assert name in reason(adapter_dir, base)
    assert "pickle" in reason(adapter_dir, base)


@pytest.mark.parametrize("name", ["a.gguf", "model.onnx", "a.h5", "a.msgpack", "adapter_model-00001-of-2.safetensors"])
def test_other_weights_are_refused(adapter_dir: Path, base: BaseModel, name: str) -> None:
    write_adapter(adapter_dir)
    (adapter_dir / name).write_bytes(b"")
    assert "beside adapter_model.safetensors" in reason(adapter_dir, base)


@pytest.mark.parametrize("name", ["setup.py", "evil.so", "weights"])
def test_unknown_files_are_refused(adapter_dir: Path, base: BaseModel, name: str) -> None:
    write_adapter(adapter_dir)
    (adapter_dir / name).write_bytes(b"")
    assert "neither part of an adapter nor documentation" in reason(adapter_dir, base)


def test_unknown_directories_are_refused(adapter_dir: Path, base: BaseModel) -> None:
    write_adapter(adapter_dir)
    (adapter_dir / "checkpoint-5").mkdir()
    assert "'checkpoint-5' is a directory" in reason(adapter_dir, base)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + b"\0" * 64, b"\x80\x04\x95" + b"\0" * 64])
def test_pickle_under_the_right_name_is_refused(adapter_dir: Path, base: BaseModel, content: bytes) -> None:
    write_adapter(adapter_dir)
    (adapter_dir / "adapter_model.safetensors").write_bytes(content)
    assert "is a pickle" in reason(adapter_dir, base)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "README.md", "trainer_state"])
def test_symlinks_are_refused(adapter_dir: Path, base: BaseModel, name: str, tmp_path: Path) -> None:
    write_adapter(adapter_dir)
    target = tmp_path / "elsewhere"
    if (adapter_dir / name).exists():
        (adapter_dir / name).rename(target)
    else:
        target.mkdir()
    (adapter_dir / name).symlink_to(target)
    assert "symbolic link" in reason(adapter_dir, base)


def test_symlink_to_a_directory_is_refused(adapter_dir: Path, base: BaseModel, tmp_path: Path) -> None:
    write_adapter(adapter_dir)
    (tmp_path / "link").symlink_to(adapter_dir)
    assert "symbolic link" in reason(tmp_path / "link", base)


def test_path_tricks_are_refused(adapter_dir: Path, base: BaseModel) -> None:
    write_adapter(adapter_dir)
    assert "not a plain path" in reason(adapter_dir / ".." / adapter_dir.name, base)
    assert "not a plain path" in reason(Path(f"{adapter_dir}\0"), base)
    assert "not a plain path" in reason(Path(f"{adapter_dir}\n"), base)


def test_a_name_too_long_for_the_file_system_is_refused(tmp_path: Path, base: BaseModel) -> None:
    assert "cannot be read (File name too long)" in reason(tmp_path / ("a" * 5000), base)


@pytest.mark.parametrize("name", ["adapter_config.json", "README.md"])
def test_named_pipe_is_refused_without_waiting(adapter_dir: Path, base: BaseModel, name: str) -> None:
    write_adapter(adapter_dir)
    (adapter_dir / name).unlink(missing_ok=True)
    os.mkfifo(adapter_dir / name)
    assert "not a regular file" in reason(adapter_dir, base)


# adapter_config.json


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 2]]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("target_parameters", ["mlp.experts"]),
        ("trainable_token_indices", [3]),
        ("arrow_config", {"top_k": 1}),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("task_type", "SEQ_CLS"),
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("a_feature_of_tomorrow", 1),
        ("r", 0),
        ("r", 4.5),
        ("r", True),
        ("lora_alpha", 0),
        ("lora_alpha", "many"),
        ("lora_alpha", 1e999),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 4}),
        ("target_modules", []),
        ("target_modules", None),
        ("target_modules", ".*_proj"),
        ("target_modules", ["q_proj$"]),
    ],
)
def test_config_that_would_not_be_served_is_refused(
    adapter_dir: Path, base: BaseModel, key: str, value: object
) -> None:
    message = reason(write_adapter(adapter_dir, config=peft_config(**{key: value})), base)
    assert message.startswith("adapter_config.json")
    assert key in message or "Infinity" in message


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "qkv", "linear_fc1"])
def test_unknown_target_modules_are_refused(adapter_dir: Path, base: BaseModel, target: str) -> None:
    config = peft_config(target_modules=[*TARGETS, target])
    assert f"'{target}' is not adapted in qwen3_vl" in reason(write_adapter(adapter_dir, config=config), base)


def test_rank_over_the_limit_is_refused(adapter_dir: Path, base: BaseModel) -> None:
    assert "max_lora_rank 3" in reason(write_adapter(adapter_dir), base, max_rank=RANK - 1)
    assert accepted(adapter_dir, base, max_rank=RANK)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"r": 1, "r": 2}', '{"r": NaN}', "[" * 100_000, '{"r": ' + "9" * 5000 + "}", "\udcff"]
)
def test_config_that_is_no_json_object_is_refused(adapter_dir: Path, base: BaseModel, text: str) -> None:
    write_adapter(adapter_dir)
    (adapter_dir / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert reason(adapter_dir, base).startswith("adapter_config.json")


def test_oversize_config_is_refused(adapter_dir: Path, base: BaseModel) -> None:
    write_adapter(adapter_dir)
    with (adapter_dir / "adapter_config.json").open("ab") as file:
        file.write(b" " * (2 << 20))
    assert "more than the" in reason(adapter_dir, base)


# The tensors


def test_key_that_matches_no_module_is_refused(adapter_dir: Path, base: BaseModel) -> None:
    tensors = lora_tensors()
    for side in "AB":
        values = tensors.pop(f"{PREFIX}{QKV}.lora_{side}.weight")
        tensors[f"{PREFIX}model.language_model.layers.7.self_attn.q_proj.lora_{side}.weight"] = values
    assert "matches no module of the base" in reason(write_adapter(adapter_dir, tensors), base)


@pytest.mark.parametrize(
    "name",
    [
        f"{QKV}.lora_A.weight",
        f"{PREFIX}{QKV}.weight",
        f"{PREFIX}{QKV}.lora_A.default.weight",
        f"{PREFIX}{QKV}.lora_A.bias",
        f"{PREFIX}{QKV}.lora_magnitude_vector",
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
    assert f"{QKV} has no {missing}" in reason(write_adapter(adapter_dir, tensors), base)


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


# The manifest


def test_adapter_of_another_base_is_refused(adapter_dir: Path, base: BaseModel) -> None:
    write_manifested(adapter_dir, base, base_hash="sha256:" + "0" * 64)
    assert "trained on another base" in reason(adapter_dir, base)


def test_adapter_of_another_family_is_refused(adapter_dir: Path, base: BaseModel) -> None:
    write_manifested(adapter_dir, base, family="internvl")
    assert "for the family internvl" in reason(adapter_dir, base)


def test_corrupted_weights_are_refused(adapter_dir: Path, base: BaseModel) -> None:
    write_manifested(adapter_dir, base)
    path = adapter_dir / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)
    assert "the file is corrupted" in reason(adapter_dir, base)


def test_manifest_of_other_tensors_is_refused(adapter_dir: Path, base: BaseModel) -> None:
    write_manifested(adapter_dir, base, tensors={Q_A: "0" * 64})
    assert "lists other tensors" in reason(adapter_dir, base)


@pytest.mark.parametrize(
    "changes", [{"rank": RANK + 1}, {"alpha": 1.0}, {"target_modules": ["q_proj"]}, {"dtype": "bfloat16"}]
)
def test_manifest_that_contradicts_the_files_is_refused(
    adapter_dir: Path, base: BaseModel, changes: dict[str, object]
) -> None:
    write_manifested(adapter_dir, base, **changes)
    assert "do not belong together" in reason(adapter_dir, base)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format_version", 2),
        ("tensors", {Q_A: "zz"}),
        ("base_hash", "abc"),
        ("surprise", 1),
        ("metrics", {"loss": "x"}),
    ],
)
def test_malformed_manifest_is_refused_naming_the_field(
    adapter_dir: Path, base: BaseModel, key: str, value: object
) -> None:
    write_manifested(adapter_dir, base)
    path = adapter_dir / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert f"manifest.json is not valid at {key}" in reason(adapter_dir, base)


@pytest.mark.parametrize("text", ["", "null", "[" * 100_000, "{"])
def test_manifest_that_is_no_json_is_refused(adapter_dir: Path, base: BaseModel, text: str) -> None:
    write_manifested(adapter_dir, base)
    (adapter_dir / "manifest.json").write_text(text)
    assert "manifest.json is not valid" in reason(adapter_dir, base)


def half_tensors(dtype: str) -> dict[str, tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]]:
    """The same weights in F16, or in BF16 as bit patterns (the upper half of float32's)."""
    if dtype == "F16":
        return {name: ("F16", values.astype("<f2")) for name, (_, values) in lora_tensors().items()}
    return {name: ("BF16", (values.view("<u4") >> 16).astype("<u2")) for name, (_, values) in lora_tensors().items()}
