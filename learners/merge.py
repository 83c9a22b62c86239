"""An adapter merged into its base: a model directory in the base's own precision.

    W' = W + s B A                               LoRA (https://arxiv.org/abs/2106.09685, section 4.1)
    W' = m (W + s B A) / |W + s B A|             DoRA (https://arxiv.org/abs/2402.09353, equation 5)

W is (out, in), A (r, in), B (out, r), m (out,), the norm is that of each row. All of it is computed in float32 and
rounded once, to W's dtype. Every other tensor, and every file that is no weight, is copied byte by byte.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engines.adapter import WEIGHTS_FILE
from engines.adapter.base import COPY_FILE, INDEX_FILE, weight_files
from engines.adapter.mergeable import LORA_A, LORA_B, MAGNITUDE, MergeableAdapter
from engines.errors import AdapterRefused, BadRequest
from engines.export_probe import EXPORT_FILE
from engines.profiles import FamilyProfile, profile_of, read_config

if TYPE_CHECKING:
    from torch import Tensor

TEXT_SUFFIXES = (".json", ".jinja", ".txt", ".model")
"""Of what belongs to a model beside its weights: configuration, processor, tokenizer, chat template."""
OF_ITS_WEIGHTS = (COPY_FILE, EXPORT_FILE, INDEX_FILE)
"""Does not hold for other weights, or for the same ones in other files."""


def merge(base: Path, adapter: MergeableAdapter, out: Path) -> None:
    """Writes `base` with `adapter` into the empty directory `out`, in files of the same names.

    Raises `BadRequest` for a quantized base, `AdapterRefused` if the adapter's file changed since it was verified.
    """
    from safetensors.torch import load_file, save_file

    check_unquantized(base)
    profile, lora = profile_of(base), _load(adapter)
    for path in weight_files(base):
        tensors = load_file(path)
        for name, weight in tensors.items():
            module = _module_of(name, profile)
            if module in adapter.modules:
                tensors[name] = _merged(weight, _parts(lora, profile.adapter_prefix + module), adapter.scale)
        save_file(tensors, out / path.name, metadata={"format": "pt"})
    copy_texts(base, out)
    copy_index(base, out)


def check_unquantized(base: Path) -> None:
    """Raises `BadRequest` for a model whose weights are rounded already: what is merged there would be lost."""
    if "quantization_config" in read_config(base):
        raise BadRequest(f"{base} is quantized: name the directory of the base that it was made from", param="model")


def copy_texts(model: Path, out: Path) -> None:
    """Copies what belongs to a model beside its weights: not what says whose copy it is, or where its weights lie."""
    for path in sorted(model.iterdir()):
        if path.suffix in TEXT_SUFFIXES and path.is_file() and path.name not in OF_ITS_WEIGHTS:
            shutil.copyfile(path, out / path.name)


def copy_index(model: Path, out: Path) -> None:
    """For weights in files of the same names."""
    if (model / INDEX_FILE).exists():
        shutil.copyfile(model / INDEX_FILE, out / INDEX_FILE)


def _load(adapter: MergeableAdapter) -> dict[str, Tensor]:
    """The bytes that were verified, and no others."""
    from safetensors.torch import load

    content = (adapter.path / WEIGHTS_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != adapter.weights_sha256:
        raise AdapterRefused(f"{adapter.path / WEIGHTS_FILE} changed since it was verified: export again", param="path")
    tensors: dict[str, Tensor] = load(content)
    return tensors


def _module_of(name: str, profile: FamilyProfile) -> str | None:
    module, _, leaf = profile.model_module(name).rpartition(".")
    return module if leaf == "weight" else None


def _parts(lora: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = ((part, f"{prefix}.{part}") for part in (LORA_A, LORA_B, MAGNITUDE))
    return {part: lora[name].float() for part, name in names if name in lora}


def _merged(weight: Tensor, parts: Mapping[str, Tensor], scale: float) -> Tensor:
    product = weight.float() + scale * (parts[LORA_B] @ parts[LORA_A])
    if MAGNITUDE in parts:
        product *= (parts[MAGNITUDE] / product.norm(dim=1))[:, None]
    return product.to(weight.dtype).contiguous()
