"""A copy of a base in another number format, as compressed-tensors stores it.

Only the language linears' weights change; the vision tower, the embeddings and the head stay as they are.
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
from learners.toy.schemes import FP8, Scheme

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "config.json"


def quantize(base: Path, destination: Path, scheme: Scheme = FP8) -> None:
    """Writes the copy of `base`, and whose copy it is. Raises `BadRequest` if there is nothing to quantize."""
    from safetensors.torch import load_file, save_file

    profile = profile_of(base)
    made: dict[str, Tensor] = {}
    for name, tensor in load_file(base / WEIGHTS_FILE).items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and profile.is_target(profile.model_module(module)):
            made |= {f"{module}.{part}": value for part, value in scheme.compress(tensor).items()}
        else:
            made[name] = tensor
    if not any(name.endswith(".weight_scale") for name in made):
        raise BadRequest(f"{base} has no language linears to quantize: is it already a copy?", param="model")
    destination.mkdir(parents=True, exist_ok=True)
    save_file(made, destination / WEIGHTS_FILE, metadata={"format": "pt"})
    _copy_texts(base, destination)
    _write_json(destination / CONFIG_FILE, _quantized_config(base, made, scheme))
    _write_json(destination / COPY_FILE, {"base_hash": base_hash_of(base)})


def _copy_texts(base: Path, destination: Path) -> None:
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja") and path.name not in (CONFIG_FILE, COPY_FILE):
            shutil.copyfile(path, destination / path.name)


def _quantized_config(base: Path, names: Iterable[str], scheme: Scheme) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / CONFIG_FILE).read_text("utf-8"))
    prefixes = profile_of(base).vision_prefixes
    vision = sorted({name.rpartition(".")[0] for name in names if name.startswith(prefixes) and "norm" not in name})
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": scheme.format,
        "quantization_status": "compressed",
        "ignore": ["lm_head", *vision],
        "config_groups": {"group_0": scheme.group()},
    }
    return config


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
