"""The shape of a linear whose weight is stored packed: several numbers in an int32.

Names and layouts are those of compressed-tensors (`pack-quantized`), GPTQ and AWQ.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engines.adapter.files import read_bounded

INT32_BITS = 32
CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 4 << 20

Shape = tuple[int, ...]
Unpacked = Callable[[Shape, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Packing:
    """How a checkpoint stores its linears: `method` is its `quant_method`, empty if it says none.

    `per_int32` is how many numbers an int32 holds; 0 if that is not known.
    """

    method: str = ""
    per_int32: int = 0


_LAYOUTS: MappingProxyType[str, tuple[str, Unpacked]] = MappingProxyType(
    {
        "compressed-tensors": ("weight_packed", lambda shape, per_int32: (shape[0], shape[1] * per_int32)),
        "gptq": ("qweight", lambda shape, per_int32: (shape[1], shape[0] * per_int32)),
        "awq": ("qweight", lambda shape, per_int32: (shape[1] * per_int32, shape[0])),
    }
)


def packing_of(model_dir: Path) -> Packing:
    """As the checkpoint's config.json says."""
    try:
        config = json.loads(read_bounded(model_dir / CONFIG_FILE, MAX_CONFIG_BYTES, follow_symlinks=True))
        quantization = config["quantization_config"]
        method = str(quantization["quant_method"]).lower()
    except (KeyError, TypeError, ValueError, RecursionError):
        return Packing()
    return Packing(method, _per_int32(_bits(method, quantization)))


def linear_shape(packing: Packing, leaf: str, shape: Shape) -> tuple[int, int] | None:
    """(out_features, in_features) of the linear that tensor `leaf` of this shape is the weight of; None if it is none,
    or packed in a way that is not known."""
    if len(shape) != 2:
        return None
    if leaf == "weight":
        return shape[0], shape[1]
    packed, unpacked = _LAYOUTS.get(packing.method, ("", lambda *_: (0, 0)))
    return unpacked(shape, packing.per_int32) if leaf == packed and packing.per_int32 else None


def _bits(method: str, quantization: dict[str, Any]) -> Any:
    """Of one number; None if the linears differ in it, or nothing says it."""
    if method != "compressed-tensors":
        return quantization.get("bits", quantization.get("w_bit"))
    try:
        found = {group["weights"]["num_bits"] for group in quantization["config_groups"].values()}
    except (KeyError, TypeError, AttributeError):
        return None
    return found.pop() if len(found) == 1 else None


def _per_int32(bits: Any) -> int:
    """0 also for bits that fill no int32: formats differ in how they pack these."""
    return INT32_BITS // bits if type(bits) is int and bits > 0 and INT32_BITS % bits == 0 else 0
