"""The safetensors format, read with every bound checked and without a tensor library.

Format: https://github.com/huggingface/safetensors#format - 8 bytes little-endian header length, a JSON object
`{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__"?}`, then the tensors' bytes without holes.
Errors are `BadRequest`; `verify` turns them into refusals.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engines.adapter.files import open_regular, parse_object, read_chunks, read_exactly, size_of
from engines.errors import BadRequest

MAX_HEADER_BYTES = 16 << 20
MAX_DIMENSIONS = 8
MAX_DIMENSION = 1 << 40
_LENGTH_BYTES = 8
_METADATA = "__metadata__"

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `begin` and `end` count bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """All tensors of one file, in the order of their bytes; `raw` is the file up to the first of these bytes."""

    raw: bytes
    tensors: tuple[TensorInfo, ...]


def read_header(file: BinaryIO, name: str) -> TensorHeader:
    """Reads and checks the header at the start of `file`; leaves the position at the first tensor's bytes.

    Raises `BadRequest` for an oversize, malformed or inconsistent header, and for offsets that overlap, leave holes or
    do not end where the file ends.
    """
    size = size_of(file)
    if size < _LENGTH_BYTES:
        raise BadRequest(f"{name} is truncated: {size} bytes are no safetensors file. Copy it again")
    prefix = read_exactly(file, _LENGTH_BYTES, name)
    length = _header_length(prefix, size, name)
    text = read_exactly(file, length, name)
    entries = parse_object(text, f"the header of {name}")
    _check_metadata(entries.pop(_METADATA, {}), name)
    tensors = tuple(
        sorted((_tensor(key, value, name) for key, value in entries.items()), key=lambda t: (t.begin, t.end))
    )
    _check_offsets(tensors, size - _LENGTH_BYTES - length, name)
    return TensorHeader(raw=prefix + text, tensors=tensors)


def _header_length(prefix: bytes, size: int, name: str) -> int:
    if prefix[:2] == b"PK" or prefix[:1] == b"\x80":
        raise BadRequest(f"{name} is a pickle (torch.save), not safetensors: save it with safe_serialization=True")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise BadRequest(
            f"{name} claims a header of {length} bytes, more than the {MAX_HEADER_BYTES} allowed: "
            "it is damaged or not a safetensors file"
        )
    if length > size - _LENGTH_BYTES:
        raise BadRequest(f"{name} is truncated: its header has {length} bytes, the file {size}. Copy it again")
    return length


def _check_metadata(value: object, name: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadRequest(f"{name}: {_METADATA} must map strings to strings. Save the file again")


def _tensor(key: str, value: object, name: str) -> TensorInfo:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise BadRequest(f"{name}: '{key[:200]}' must have exactly dtype, shape and data_offsets. Save the file again")
    shape = _integers(value["shape"], MAX_DIMENSION)
    offsets = _integers(value["data_offsets"], 1 << 62)
    bits = _BITS.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if shape is None or len(shape) > MAX_DIMENSIONS:
        raise BadRequest(f"{name}: '{key[:200]}' has no valid shape. Save the file again")
    if bits is None:
        raise BadRequest(
            f"{name}: '{key[:200]}' has the unknown dtype {str(value['dtype'])[:40]}. Save it as F32 or BF16"
        )
    if offsets is None or len(offsets) != 2:
        raise BadRequest(f"{name}: '{key[:200]}' has no valid data_offsets. Save the file again")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * bits:
        raise BadRequest(f"{name}: '{key[:200]}' has {end - begin} bytes, its shape and dtype need another number")
    return TensorInfo(key, value["dtype"], shape, begin, end)


def _integers(value: object, most: int) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n <= most for n in value):
        return None
    return tuple(value)


def _check_offsets(tensors: tuple[TensorInfo, ...], num_bytes: int, name: str) -> None:
    position = 0
    for tensor in tensors:
        if tensor.begin != position:
            kind = "overlaps the one before it" if tensor.begin < position else "leaves a hole before it"
            raise BadRequest(f"{name}: the data of '{tensor.name[:200]}' {kind}. Save the file again")
        position = tensor.end
    if position > num_bytes:
        raise BadRequest(f"{name} is truncated: its tensors need {position} bytes, it holds {num_bytes}. Copy it again")
    if position < num_bytes:
        raise BadRequest(f"{name} has {num_bytes - position} bytes after its last tensor. Save the file again")


def read_data(file: BinaryIO, header: TensorHeader, name: str) -> Iterator[tuple[TensorInfo, bytes]]:
    """Every byte after the header exactly once, in order, in chunks that never span two tensors."""
    for tensor in header.tensors:
        for chunk in read_chunks(file, tensor.num_bytes, name):
            yield tensor, chunk


def tensor_hashes(path: Path) -> dict[str, str]:
    """Tensor name -> sha256 (hex) of its raw bytes, for the manifest. Raises `BadRequest` for a malformed file."""
    with open_regular(path) as file:
        header = read_header(file, path.name)
        hashes = {tensor.name: hashlib.sha256() for tensor in header.tensors}
        for tensor, chunk in read_data(file, header, path.name):
            hashes[tensor.name].update(chunk)
    return {name: digest.hexdigest() for name, digest in hashes.items()}
