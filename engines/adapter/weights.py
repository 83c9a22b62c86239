"""One pass over an adapter's weights: what is hashed is exactly what was checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from engines.adapter.tensors import TensorHeader, TensorInfo, read_data
from engines.errors import BadRequest

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of the dtypes an adapter may have -> the manifest's."""

_BF16_EXPONENT = 0x7F80


@dataclass(frozen=True, slots=True)
class WeightsScan:
    """sha256 (hex) of the whole file, and of each tensor's raw bytes unless the whole was enough."""

    sha256: str
    tensors: dict[str, str] = field(default_factory=dict)


def scan_weights(file: BinaryIO, header: TensorHeader, name: str) -> WeightsScan:
    """Reads on from the end of the header. Raises `BadRequest` at the first NaN or Inf, or if the file was cut."""
    whole = hashlib.sha256(header.raw)
    each = {tensor.name: hashlib.sha256() for tensor in header.tensors}
    for tensor, chunk in read_data(file, header, name):
        whole.update(chunk)
        each[tensor.name].update(chunk)
        if not _is_finite(tensor, chunk):
            raise BadRequest(
                f"{name}: '{tensor.name}' holds NaN or Inf. The training diverged: "
                "lower its learning rate, or take an earlier checkpoint"
            )
    return WeightsScan(whole.hexdigest(), {name: digest.hexdigest() for name, digest in each.items()})


def _is_finite(tensor: TensorInfo, chunk: bytes) -> bool:
    if tensor.dtype == "BF16":
        # numpy has no bfloat16; NaN and Inf are the values whose eight exponent bits are all set.
        bits = np.frombuffer(chunk, dtype="<u2")
        return not bool(np.any((bits & _BF16_EXPONENT) == _BF16_EXPONENT))
    return bool(np.isfinite(np.frombuffer(chunk, dtype="<f4" if tensor.dtype == "F32" else "<f2")).all())
