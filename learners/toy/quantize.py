"""An FP8 copy of a base, in the format of compressed-tensors (`float-quantized`).

The language linears' weights get one scale per output channel, absmax / 448 (the largest float8 e4m3 number);
activations are scaled per token as they come. The vision tower, the embeddings and the head stay as they are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.adapter.base import COPY_FILE, WEIGHTS_FILE, base_hash_of
from engines.errors import BadRequest
from engines.profiles import profile_of

if TYPE_CHECKING:
    from torch import Tensor

FP8_MAX = 448.0
CONFIG_FILE = "config.json"


def quantize(base: Path, destination: Path) -> None:
    """Writes the FP8 copy of `base`, and whose copy it is. Raises `BadRequest` if there is nothing to quantize."""
    from safetensors.torch import load_file, save_file

    profile = profile_of(base)
    made: dict[str, Tensor] = {}
    for name, tensor in load_file(base / WEIGHTS_FILE).items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and profile.is_target(profile.model_module(module)):
            made[name], made[f"{module}.weight_scale"] = to_fp8(tensor)
        else:
            made[name] = tensor
    if not any(name.endswith(".weight_scale") for name in made):
        raise BadRequest(f"{base} has no language linears to quantize: is it already a copy?", param="model")
    destination.mkdir(parents=True, exist_ok=True)
    save_file(made, destination / WEIGHTS_FILE, metadata={"format": "pt"})
    _copy_texts(base, destination)
    _write_json(destination / CONFIG_FILE, _quantized_config(base, made))
    _write_json(destination / COPY_FILE, {"base_hash": base_hash_of(base)})


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight` (out, in) as float8 e4m3 and its scales (out, 1) float32; their product is the weight, rounded."""
    import torch

    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (weight.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def _copy_texts(base: Path, destination: Path) -> None:
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja") and path.name not in (CONFIG_FILE, COPY_FILE):
            shutil.copyfile(path, destination / path.name)


def _quantized_config(base: Path, names: Iterable[str]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / CONFIG_FILE).read_text("utf-8"))
    prefixes = profile_of(base).vision_prefixes
    vision = sorted({name.rpartition(".")[0] for name in names if name.startswith(prefixes) and "norm" not in name})
    fp8 = {"num_bits": 8, "type": "float", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", *vision],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": fp8 | {"strategy": "channel", "dynamic": False},
                "input_activations": fp8 | {"strategy": "token", "dynamic": True},
                "output_activations": None,
            }
        },
    }
    return config


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
