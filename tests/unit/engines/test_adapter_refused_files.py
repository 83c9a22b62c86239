"""What `verify` refuses of a directory, of adapter_config.json and of a manifest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny_adapter import Q_A, RANK, TARGETS, peft_config, write_adapter, write_manifested
from verifying import accepted, reason

from engines.adapter import BaseModel

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
