"""A tiny synthetic base and adapters for it, written without a model library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from engines.adapter import BaseModel, Manifest, read_base, tensor_hashes, write_manifest

HIDDEN = 8
INNER = 12
LAYERS = 2
RANK = 4
PREFIX = "base_model.model."
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
Q_PROJ = "model.language_model.layers.0.self_attn.q_proj"
Q_A = f"{PREFIX}{Q_PROJ}.lora_A.weight"
Q_B = f"{PREFIX}{Q_PROJ}.lora_B.weight"

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def linear_shapes() -> dict[str, tuple[int, int]]:
    """Module -> (out_features, in_features) of every language linear of the tiny base."""
    shapes = {}
    for layer in range(LAYERS):
        root = f"model.language_model.layers.{layer}"
        shapes |= {f"{root}.self_attn.{name}": (HIDDEN, HIDDEN) for name in ("q_proj", "o_proj")}
        shapes |= {f"{root}.self_attn.{name}": (HIDDEN // 2, HIDDEN) for name in ("k_proj", "v_proj")}
        shapes |= {f"{root}.mlp.{name}": (INNER, HIDDEN) for name in ("gate_proj", "up_proj")}
        shapes[f"{root}.mlp.down_proj"] = (HIDDEN, INNER)
    return shapes


def safetensors_bytes(tensors: Mapping[str, tuple[str, Array]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The file format by hand: name -> (dtype as safetensors calls it, values)."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, (dtype, values) in tensors.items():
        raw = values.tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return with_header(json.dumps(header).encode(), data)


def with_header(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def write_base(directory: Path, seed: int = 0) -> Path:
    """A directory that `read_base` takes for a Qwen3-VL."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"architectures": ["Qwen3VLForConditionalGeneration"]}))
    random = np.random.default_rng(seed)
    tensors = {
        f"{name}.weight": ("F32", random.standard_normal(shape).astype("<f4"))
        for name, shape in linear_shapes().items()
    }
    tensors["model.language_model.embed_tokens.weight"] = ("F32", np.zeros((16, HIDDEN), "<f4"))
    tensors["model.visual.blocks.0.attn.qkv.weight"] = ("F32", np.zeros((HIDDEN, HIDDEN), "<f4"))
    (directory / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return directory


def tiny_base(directory: Path) -> BaseModel:
    return read_base(write_base(directory))


def lora_tensors(targets: tuple[str, ...] = TARGETS, rank: int = RANK, seed: int = 1) -> dict[str, tuple[str, Array]]:
    """lora_A (rank, in) and lora_B (out, rank) of every linear named in `targets`, as PEFT names them."""
    random = np.random.default_rng(seed)
    tensors: dict[str, tuple[str, Array]] = {}
    for module, (out_features, in_features) in linear_shapes().items():
        if module.rsplit(".", 1)[-1] in targets:
            for side, shape in (("A", (rank, in_features)), ("B", (out_features, rank))):
                tensors[f"{PREFIX}{module}.lora_{side}.weight"] = ("F32", random.standard_normal(shape).astype("<f4"))
    return tensors


def half_tensors(dtype: str) -> dict[str, tuple[str, Array]]:
    """The same weights in F16, or in BF16 as bit patterns (the upper half of float32's)."""
    if dtype == "F16":
        return {name: ("F16", values.astype("<f2")) for name, (_, values) in lora_tensors().items()}
    return {name: ("BF16", (values.view("<u4") >> 16).astype("<u2")) for name, (_, values) in lora_tensors().items()}


def peft_config(**changes: object) -> dict[str, object]:
    """`adapter_config.json` with the keys and defaults that PEFT 0.21 writes."""
    config: dict[str, object] = {
        "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
        "base_model_name_or_path": "base", "bias": "none", "corda_config": None, "ensure_weight_tying": False,
        "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "layer_replication": None, "layers_pattern": None, "layers_to_transform": None,
        "loftq_config": {}, "lora_alpha": 2 * RANK, "lora_bias": False, "lora_dropout": 0.0, "megatron_config": None,
        "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA", "peft_version": "0.21.2",
        "qalora_group_size": 16, "r": RANK, "rank_pattern": {}, "revision": None, "target_modules": list(TARGETS),
        "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_bdlora": None,
        "use_dora": False, "use_qalora": False, "use_rslora": False,
    }  # fmt: skip
    return config | changes


def write_adapter(
    directory: Path, tensors: Mapping[str, tuple[str, Array]] | None = None, config: Mapping[str, object] | None = None
) -> Path:
    """An adapter as plain PEFT saves it: no manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(peft_config() if config is None else config))
    weights = safetensors_bytes(lora_tensors() if tensors is None else tensors, {"format": "pt"})
    (directory / "adapter_model.safetensors").write_bytes(weights)
    return directory


def manifest_of(directory: Path, base: BaseModel, **changes: object) -> Manifest:
    """What a learner would say of the adapter in `directory`."""
    values: dict[str, object] = {
        "family": base.profile.name, "base_hash": base.base_hash, "rank": RANK, "alpha": 2 * RANK,
        "target_modules": TARGETS, "tensors": tensor_hashes(directory / "adapter_model.safetensors"),
        "dtype": "float32", "data_hash": "sha256:00", "code_version": "0.1.0",
    }  # fmt: skip
    return Manifest.model_validate(values | changes)


def write_manifested(directory: Path, base: BaseModel, **changes: object) -> Path:
    write_adapter(directory)
    write_manifest(directory, manifest_of(directory, base, **changes))
    return directory
