"""`verify`: everything that must hold of an adapter's directory before any engine sees it.

Reads three files and executes nothing. Each refusal is an `AdapterRefused` naming the file or tensor and what to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines.adapter.base import BaseModel
from engines.adapter.directory import WEIGHTS_FILE, check_directory
from engines.adapter.files import open_regular, read_bounded, size_of
from engines.adapter.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, ProbeRecord, parse_manifest
from engines.adapter.peft_config import CONFIG_FILE, MAX_CONFIG_BYTES, PeftConfig, parse_peft_config
from engines.adapter.tensors import TensorHeader, TensorInfo, read_header
from engines.adapter.weights import DTYPES, WeightsScan, scan_weights
from engines.errors import AdapterRefused, BadRequest
from engines.profiles import FamilyProfile

MAX_WEIGHTS_BYTES = 16 << 30
_SIDES = {"lora_A": 0, "lora_B": 1}


@dataclass(frozen=True, slots=True)
class VerifiedAdapter:
    """An adapter that passed. The sha256 are bare hex, of the bytes that were checked; `install` insists on them.

    `modules` are names in the model. Without a manifest the proof is
    the shapes and the hashes alone.
    """

    path: Path
    base_hash: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    modules: tuple[str, ...]
    weights_sha256: str
    config_sha256: str
    manifest_sha256: str | None
    manifest: Manifest | None

    def probe(self) -> tuple[ProbeRecord, ...]:
        """Empty without a manifest."""
        return self.manifest.probe if self.manifest is not None else ()

    def files(self) -> tuple[tuple[str, str], ...]:
        """(file name, sha256) of all that belongs to the adapter."""
        pairs = ((CONFIG_FILE, self.config_sha256), (WEIGHTS_FILE, self.weights_sha256))
        return pairs if self.manifest_sha256 is None else (*pairs, (MANIFEST_FILE, self.manifest_sha256))


@contextmanager
def refusing() -> Iterator[None]:
    """Whatever is wrong with the adapter's input is a refusal of it."""
    try:
        yield
    except BadRequest as error:
        raise AdapterRefused(error.message, param="path") from error


def verify(directory: Path, base: BaseModel, max_rank: int, known_weights_sha256: str | None = None) -> VerifiedAdapter:
    """Raises `AdapterRefused` unless the adapter in `directory` fits `base` and an engine of `max_rank`.

    Of weights that passed before, `known_weights_sha256` says all: only their header is read, and that they hash to it
    is left to the caller to check.
    """
    with refusing():
        check_directory(directory)
        config_bytes = read_bounded(directory / CONFIG_FILE, MAX_CONFIG_BYTES)
        manifest_bytes = manifest_bytes_of(directory)
        config = parse_peft_config(config_bytes)
        manifest = None if manifest_bytes is None else parse_manifest(manifest_bytes)
        if manifest is not None:
            check_origin(manifest, base.path, base.profile, base.base_hash)
        _check_rank(config, max_rank)
        _check_targets(config, base)
        header, modules, scan = _check_weights(directory / WEIGHTS_FILE, config, base, known_weights_sha256)
        if manifest is not None:
            check_manifest(manifest, config, header, scan)
    return VerifiedAdapter(
        path=directory,
        base_hash=base.base_hash,
        rank=config.r,
        alpha=config.lora_alpha,
        target_modules=config.target_modules,
        modules=modules,
        weights_sha256=scan.sha256,
        config_sha256=hashlib.sha256(config_bytes).hexdigest(),
        manifest_sha256=None if manifest_bytes is None else hashlib.sha256(manifest_bytes).hexdigest(),
        manifest=manifest,
    )


def manifest_bytes_of(directory: Path) -> bytes | None:
    """None if the adapter has no manifest."""
    path = directory / MANIFEST_FILE
    return read_bounded(path, MAX_MANIFEST_BYTES) if path.exists() else None


def check_origin(manifest: Manifest, base: Path, profile: FamilyProfile, base_hash: str) -> None:
    """Raises `BadRequest` unless the adapter was trained on the model in `base`."""
    if manifest.family != profile.name:
        raise BadRequest(
            f"{MANIFEST_FILE}: the adapter is for the family {manifest.family[:80]}, this engine serves "
            f"{profile.name}: register it under a model of its own family"
        )
    if manifest.base_hash != base_hash:
        raise BadRequest(
            f"{MANIFEST_FILE}: the adapter was trained on another base ({manifest.base_hash[:19]}..., here "
            f"{base_hash[:19]}...): train it on {base}, or register it under the model of its own base"
        )


def _check_rank(config: PeftConfig, max_rank: int) -> None:
    if config.r > max_rank:
        raise BadRequest(
            f"{CONFIG_FILE}: rank {config.r} is over this engine's max_lora_rank {max_rank}: "
            "train with a lower rank, or raise max_lora_rank"
        )


def _check_targets(config: PeftConfig, base: BaseModel) -> None:
    known = base.profile.target_modules
    for entry in config.target_modules:
        if entry.rsplit(".", 1)[-1] not in known:
            raise BadRequest(
                f"{CONFIG_FILE}: target_modules: '{entry}' is not adapted in {base.profile.name}: "
                f"only {', '.join(known)} are; `tandem versions export` merges an adapter of others into its base"
            )


def _check_weights(
    path: Path, config: PeftConfig, base: BaseModel, known_sha256: str | None
) -> tuple[TensorHeader, tuple[str, ...], WeightsScan]:
    with open_regular(path) as file:
        if size_of(file) > MAX_WEIGHTS_BYTES:
            raise BadRequest(f"{WEIGHTS_FILE} has {size_of(file)} bytes, more than the {MAX_WEIGHTS_BYTES} allowed")
        header = read_header(file, WEIGHTS_FILE)
        modules = _check_tensors(header, config, base)
        if known_sha256 is None:
            return header, modules, scan_weights(file, header, WEIGHTS_FILE)
        return header, modules, WeightsScan(known_sha256)


def _check_tensors(header: TensorHeader, config: PeftConfig, base: BaseModel) -> tuple[str, ...]:
    sides: dict[str, set[str]] = {}
    for tensor in header.tensors:
        module, side = _module_of(tensor, base)
        _check_module(tensor, module, config, base)
        _check_shape(tensor, side, config.r, base.modules[module])
        sides.setdefault(module, set()).add(side)
    for module, present in sides.items():
        if len(present) != len(_SIDES):
            missing = next(side for side in _SIDES if side not in present)
            raise BadRequest(
                f"{WEIGHTS_FILE}: {module} has no {missing}: the file is incomplete, save the adapter again"
            )
    _check_all_touched(config, sides)
    return tuple(sorted(sides))


def _module_of(tensor: TensorInfo, base: BaseModel) -> tuple[str, str]:
    family = base.profile
    module, _, leaf = tensor.name.removeprefix(family.adapter_prefix).partition(".lora_")
    side = f"lora_{leaf.removesuffix('.weight')}"
    if family.is_vision(module):
        raise BadRequest(
            f"{WEIGHTS_FILE}: '{tensor.name[:200]}' adapts the vision tower, which the engine would silently drop: "
            f"train on {', '.join(family.target_modules)} of the language model only, or merge the adapter into its "
            "base with `tandem versions export`"
        )
    if not tensor.name.startswith(family.adapter_prefix) or side not in _SIDES or not leaf.endswith(".weight"):
        raise BadRequest(
            f"{WEIGHTS_FILE}: '{tensor.name[:200]}' is no LoRA weight as PEFT names it "
            f"({family.adapter_prefix}MODULE.lora_A.weight): save the adapter with PEFT's save_pretrained"
        )
    return module, side


def _check_module(tensor: TensorInfo, module: str, config: PeftConfig, base: BaseModel) -> None:
    if module not in base.modules:
        raise BadRequest(
            f"{WEIGHTS_FILE}: '{tensor.name[:200]}' matches no module of the base {base.path}: "
            "train the adapter on this base"
        )
    if not config.targets_touching(module):
        raise BadRequest(
            f"{WEIGHTS_FILE}: '{tensor.name[:200]}' is not among the target_modules of {CONFIG_FILE}: "
            "the two files do not belong together"
        )
    if tensor.dtype not in DTYPES:
        raise BadRequest(
            f"{WEIGHTS_FILE}: '{tensor.name[:200]}' has dtype {tensor.dtype}: save the adapter as {', '.join(DTYPES)}"
        )


def _check_shape(tensor: TensorInfo, side: str, rank: int, linear: tuple[int, int]) -> None:
    out_features, in_features = linear
    expected = (rank, in_features) if side == "lora_A" else (out_features, rank)
    if tensor.shape != expected:
        raise BadRequest(
            f"{WEIGHTS_FILE}: '{tensor.name[:200]}' has shape {tensor.shape}, this base and {CONFIG_FILE} need "
            f"{expected}: train the adapter on this base"
        )


def _check_all_touched(config: PeftConfig, modules: dict[str, set[str]]) -> None:
    if not modules:
        raise BadRequest(f"{WEIGHTS_FILE} holds no tensors: save the adapter again")
    touched = {entry for module in modules for entry in config.targets_touching(module)}
    for entry in config.target_modules:
        if entry not in touched:
            raise BadRequest(
                f"{WEIGHTS_FILE} has no tensor for '{entry}' of {CONFIG_FILE}'s target_modules: "
                "the file is incomplete, save it again"
            )


def check_manifest(manifest: Manifest, config: PeftConfig, header: TensorHeader, scan: WeightsScan) -> None:
    """Raises `BadRequest` unless the manifest is that of these files."""
    claimed = (manifest.rank, manifest.alpha, set(manifest.target_modules))
    if claimed != (config.r, config.lora_alpha, set(config.target_modules)):
        raise BadRequest(
            f"{MANIFEST_FILE}: rank, alpha or target_modules differ from {CONFIG_FILE}: "
            "the two files do not belong together"
        )
    if any(DTYPES[tensor.dtype] != manifest.dtype for tensor in header.tensors):
        raise BadRequest(f"{MANIFEST_FILE}: dtype is not that of {WEIGHTS_FILE}: the two files do not belong together")
    if manifest.tensors.keys() != {tensor.name for tensor in header.tensors}:
        raise BadRequest(
            f"{MANIFEST_FILE} lists other tensors than {WEIGHTS_FILE}: the two files do not belong together"
        )
    for name, digest in scan.tensors.items():
        if manifest.tensors[name] != digest:
            raise BadRequest(
                f"{WEIGHTS_FILE}: '{name[:200]}' is not what {MANIFEST_FILE} says: the file is corrupted, copy it again"
            )
