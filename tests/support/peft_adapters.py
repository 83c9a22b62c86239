"""PEFT-format adapters for tests, written with numpy alone: every language linear of a model, random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from engines.types import AdapterRef

MAX_LORAS = 4
MakeAdapter = Callable[..., AdapterRef]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def linears(text_config: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """(name as PEFT writes it, out features, in features) of every language linear."""
    hidden, inner, head = text_config["hidden_size"], text_config["intermediate_size"], text_config["head_dim"]
    queries, keys = text_config["num_attention_heads"] * head, text_config["num_key_value_heads"] * head
    shapes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for layer in range(text_config["num_hidden_layers"]):
        for name, (out_features, in_features) in shapes.items():
            yield f"base_model.model.model.language_model.layers.{layer}.{name}", out_features, in_features


def write_adapter(directory: Path, model: Path, *, seed: int, rank: int = 8, scale: float = 0.3) -> Path:
    """A valid adapter for the model whose config.json lies in `model`; returns `directory`."""
    text_config = json.loads((model / "config.json").read_text())["text_config"]
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, out_features, in_features in linears(text_config):
        tensors[f"{name}.lora_A.weight"] = rng.normal(0, in_features**-0.5, (rank, in_features)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.normal(0, scale, (out_features, rank)).astype(np.float32)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none"}
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({**config, "target_modules": list(TARGETS)}))
    return directory
