"""The shape of a linear whose weight is stored packed: eight numbers of four bits in an int32.

Names and layouts are those of compressed-tensors (`pack-quantized`), GPTQ and AWQ.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from engines.adapter.files import read_bounded

PER_INT32 = 8
CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 4 << 20

Shape = tuple[int, ...]
Unpacked = Callable[[Shape], tuple[int, int]]

_LAYOUTS: MappingProxyType[str, tuple[str, Unpacked]] = MappingProxyType(
    {
        "compressed-tensors": ("weight_packed", lambda shape: (shape[0], shape[1] * PER_INT32)),
        "gptq": ("qweight", lambda shape: (shape[1], shape[0] * PER_INT32)),
        "awq": ("qweight", lambda shape: (shape[1] * PER_INT32, shape[0])),
    }
)


def method_of(model_dir: Path) -> str:
    """The `quant_method` of the checkpoint's config.json; empty if it says none."""
    try:
        config = json.loads(read_bounded(model_dir / CONFIG_FILE, MAX_CONFIG_BYTES, follow_symlinks=True))
        return str(config["quantization_config"]["quant_method"]).lower()
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""


def linear_shape(method: str, leaf: str, shape: Shape) -> tuple[int, int] | None:
    """(out_features, in_features) of the linear that tensor `leaf` of this shape is the weight of; None if it is none.

    `method` is that of `method_of`.
    """
    if len(shape) != 2:
        return None
    if leaf == "weight":
        return shape[0], shape[1]
    packed, unpacked = _LAYOUTS.get(method, ("", lambda _: (0, 0)))
    return unpacked(shape) if leaf == packed else None
