"""The base model that adapters are checked against: its family, its hash, and the shapes of its linears.

Reads headers only, except for the hash. A copy in another number format says whose copy it is in `tandem_base.json`, so
that an adapter of the original fits it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from engines.adapter.files import open_regular, parse_object, read_bounded, read_chunks, size_of
from engines.adapter.packed import Packing, linear_shape, packing_of
from engines.adapter.tensors import TensorInfo, read_header
from engines.errors import BadRequest
from engines.profiles import FamilyProfile, profile_of

COPY_FILE = "tandem_base.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """`modules`: name in the model -> (out_features, in_features), of the linears that adapters may touch."""

    path: Path
    profile: FamilyProfile
    base_hash: str
    modules: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Stamp:
    path: Path
    size: int
    mtime_ns: int


def read_base(model_dir: Path, profile: FamilyProfile | None = None) -> BaseModel:
    """By default of the family that its config.json names. Raises `BadRequest` for a directory that is no such model,
    or has no safetensors weights."""
    profile = profile or profile_of(model_dir)
    modules = {name: shape for name, shape in linear_shapes(model_dir, profile).items() if profile.is_target(name)}
    if not modules:
        raise BadRequest(
            f"{model_dir} has no weights named {profile.language_prefixes[0]}*.{profile.target_modules[0]}.weight: "
            f"it is not a {profile.name} checkpoint as transformers saves it",
            param="model",
        )
    return BaseModel(model_dir, profile, base_hash_of(model_dir), MappingProxyType(modules))


def linear_shapes(model_dir: Path, profile: FamilyProfile) -> dict[str, tuple[int, int]]:
    """Name in the model -> (out_features, in_features), of every module whose weight is a matrix, packed or not."""
    shapes: dict[str, tuple[int, int]] = {}
    packing = packing_of(model_dir)
    for path in weight_files(model_dir):
        shapes.update(_matrix_shapes(path, profile, packing))
    return shapes


def base_hash_of(model_dir: Path) -> str:
    """What `tandem_base.json` says, or `sha256:<hex>` over the weight files' bytes, in the order of their names."""
    copy_of = model_dir / COPY_FILE
    if not copy_of.exists():
        return _hash_files(tuple(_stamp(path) for path in weight_files(model_dir)))
    value = parse_object(read_bounded(copy_of, MAX_INDEX_BYTES, follow_symlinks=True), COPY_FILE).get("base_hash")
    if not isinstance(value, str) or _HASH.fullmatch(value) is None:
        raise BadRequest(f'{copy_of} must hold {{"base_hash": "sha256:<64 hex digits>"}}', param="model")
    return value


def stored_modules(model_dir: Path) -> frozenset[str]:
    """What the weight files call their modules. Raises `BadRequest` without safetensors weights."""
    names = (tensor.name for path in weight_files(model_dir) for tensor in _tensors(path))
    return frozenset(name.rpartition(".")[0] for name in names)


def weight_files(model_dir: Path) -> tuple[Path, ...]:
    """In the order of their names. Raises `BadRequest` for an index that names others than files beside it."""
    index = model_dir / INDEX_FILE
    if not index.exists():
        return (model_dir / WEIGHTS_FILE,)
    names = parse_object(read_bounded(index, MAX_INDEX_BYTES, follow_symlinks=True), INDEX_FILE).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BadRequest(f"{index} has no weight_map", param="model")
    for name in names.values():
        if not isinstance(name, str) or _SHARD.fullmatch(name) is None:
            raise BadRequest(
                f"{index} names '{str(name)[:200]}', which is no safetensors file beside it", param="model"
            )
    return tuple(model_dir / name for name in sorted(set(names.values())))


def _matrix_shapes(path: Path, profile: FamilyProfile, packing: Packing) -> dict[str, tuple[int, int]]:
    shapes = {}
    for tensor in _tensors(path):
        module, _, leaf = profile.model_module(tensor.name).rpartition(".")
        if (shape := linear_shape(packing, leaf, tensor.shape)) is not None:
            shapes[module] = shape
    return shapes


def _tensors(path: Path) -> tuple[TensorInfo, ...]:
    # Files of a hub's cache are symbolic links, and the operator chose this directory.
    with open_regular(path, follow_symlinks=True) as file:
        return read_header(file, path.name).tensors


def _stamp(path: Path) -> _Stamp:
    with open_regular(path, follow_symlinks=True) as file:
        size = size_of(file)
    return _Stamp(path, size, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _hash_files(stamps: tuple[_Stamp, ...]) -> str:
    digest = hashlib.sha256()
    for stamp in stamps:
        with open_regular(stamp.path, follow_symlinks=True) as file:
            for chunk in read_chunks(file, stamp.size, stamp.path.name):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
