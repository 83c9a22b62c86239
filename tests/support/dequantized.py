"""What a W4A16 copy stands for, as an unquantized checkpoint: the same numbers, for an engine without the operator."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

from compressed_tensors.compressors import PackedQuantizationCompressor
from safetensors.torch import load_file, save_file
from torch import Tensor

from learners.toy.schemes import packing

PACKED = "weight_packed"


def dequantize(copy: Path, destination: Path) -> None:
    """Writes the checkpoint; its language linears' weights are float32."""
    shutil.copytree(copy, destination)
    save_file(unpack(copy), destination / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text("utf-8"))
    del config["quantization_config"]
    (destination / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def unpack(copy: Path) -> dict[str, Tensor]:
    """The copy's tensors by the names that its base has them by."""
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in load_file(copy / "model.safetensors").items():
        module, _, leaf = name.rpartition(".")
        modules[module][leaf] = tensor.float() if leaf == "weight_scale" else tensor
    return {
        f"{module}.{leaf}" if module else leaf: tensor
        for module, parts in modules.items()
        for leaf, tensor in _unpacked(parts).items()
    }


def _unpacked(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    if PACKED not in parts:
        return parts
    weight: Tensor = PackedQuantizationCompressor.decompress(parts, packing())["weight"]
    return {"weight": weight}
