"""`verify_mergeable`: what must hold of an adapter that is merged into its base, and is served from no slot.

Wider than `verify`: any rank, DoRA, and any linear of the base, the vision tower's too. Everything else is as strict:
an adapter's files are untrusted input here as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.adapter.base import base_hash_of, linear_shapes
from engines.adapter.directory import WEIGHTS_FILE, check_directory
from engines.adapter.files import open_regular, read_bounded, size_of
from engines.adapter.manifest import Manifest, parse_manifest
from engines.adapter.peft_config import CONFIG_FILE, MAX_CONFIG_BYTES, PeftConfig, parse_mergeable_config
from engines.adapter.tensors import TensorHeader, TensorInfo, read_header
from engines.adapter.verify import MAX_WEIGHTS_BYTES, check_manifest, check_origin, manifest_bytes_of, refusing
from engines.adapter.weights import DTYPES, WeightsScan, scan_weights
from engines.errors import BadRequest
from engines.profiles import FamilyProfile, profile_of

LORA_A, LORA_B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
"""What PEFT writes behind a module's name; the last one for DoRA only."""


@dataclass(frozen=True, slots=True)
class MergeableAdapter:
    """An adapter that passed. `weights_sha256` (bare hex) is of the bytes that were checked.

    `modules` are names in the model; `scale` is that of the product B A.
    """

    path: Path
    base_hash: str
    rank: int
    scale: float
    use_dora: bool
    modules: tuple[str, ...]
    weights_sha256: str
    manifest: Manifest | None


def verify_mergeable(directory: Path, base: Path) -> MergeableAdapter:
    """Raises `AdapterRefused` unless the adapter in `directory` fits the model in `base`.

    Raises `BadRequest` if `base` is no model of a known family.
    """
    profile, base_hash = profile_of(base), base_hash_of(base)
    linears = linear_shapes(base, profile)
    with refusing():
        check_directory(directory)
        config = parse_mergeable_config(read_bounded(directory / CONFIG_FILE, MAX_CONFIG_BYTES))
        manifest_bytes = manifest_bytes_of(directory)
        manifest = None if manifest_bytes is None else parse_manifest(manifest_bytes)
        if manifest is not None:
            check_origin(manifest, base, profile, base_hash)
        with open_regular(directory / WEIGHTS_FILE) as file:
            if size_of(file) > MAX_WEIGHTS_BYTES:
                raise BadRequest(f"{WEIGHTS_FILE} has {size_of(file)} bytes, more than the {MAX_WEIGHTS_BYTES} allowed")
            header = read_header(file, WEIGHTS_FILE)
            modules = _check_tensors(header, config, profile, linears)
            scan: WeightsScan = scan_weights(file, header, WEIGHTS_FILE)
        if manifest is not None:
            check_manifest(manifest, config, header, scan)
    return MergeableAdapter(
        directory, base_hash, config.r, config.scale, config.use_dora, modules, scan.sha256, manifest
    )


def _check_tensors(
    header: TensorHeader, config: PeftConfig, profile: FamilyProfile, linears: dict[str, tuple[int, int]]
) -> tuple[str, ...]:
    parts = (LORA_A, LORA_B, MAGNITUDE) if config.use_dora else (LORA_A, LORA_B)
    found: dict[str, set[str]] = {}
    for tensor in header.tensors:
        module, part = _split(tensor, profile, parts)
        if module not in linears:
            raise BadRequest(
                f"{WEIGHTS_FILE}: '{tensor.name[:200]}' matches no linear of the base: train the adapter on this base"
            )
        _check_tensor(tensor, part, config.r, linears[module])
        found.setdefault(module, set()).add(part)
    for module, present in found.items():
        for part in parts:
            if part not in present:
                raise BadRequest(
                    f"{WEIGHTS_FILE}: {module} has no {part}: the file is incomplete, save the adapter again"
                )
    if not found:
        raise BadRequest(f"{WEIGHTS_FILE} holds no tensors: save the adapter again")
    return tuple(sorted(found))


def _split(tensor: TensorInfo, profile: FamilyProfile, parts: tuple[str, ...]) -> tuple[str, str]:
    for part in parts:
        if tensor.name.startswith(profile.adapter_prefix) and tensor.name.endswith(f".{part}"):
            return tensor.name.removeprefix(profile.adapter_prefix).removesuffix(f".{part}"), part
    raise BadRequest(
        f"{WEIGHTS_FILE}: '{tensor.name[:200]}' is none of {', '.join(parts)} as PEFT names it "
        f"({profile.adapter_prefix}MODULE.{LORA_A}): save the adapter with PEFT's save_pretrained"
    )


def _check_tensor(tensor: TensorInfo, part: str, rank: int, linear: tuple[int, int]) -> None:
    if tensor.dtype not in DTYPES:
        raise BadRequest(
            f"{WEIGHTS_FILE}: '{tensor.name[:200]}' has dtype {tensor.dtype}: save the adapter as {', '.join(DTYPES)}"
        )
    out_features, in_features = linear
    expected = {LORA_A: (rank, in_features), LORA_B: (out_features, rank), MAGNITUDE: (out_features,)}[part]
    if tensor.shape != expected:
        raise BadRequest(
            f"{WEIGHTS_FILE}: '{tensor.name[:200]}' has shape {tensor.shape}, this base and {CONFIG_FILE} need "
            f"{expected}: train the adapter on this base"
        )
