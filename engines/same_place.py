"""Whether another model fits the place of one that an engine's process serves: only its weights may differ.

What a process has read once stays: architecture, number format, tokenizer, processor, chat template.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.adapter.base import COPY_FILE, INDEX_FILE
from engines.errors import BadRequest
from engines.export_probe import EXPORT_FILE

KINDS = ("vllm", "fake")
"""Back ends that can swap their weights."""
CONFIG_FILE = "config.json"
_TEXTS = (".json", ".jinja", ".txt", ".model")
_OF_ITS_OWN = frozenset({CONFIG_FILE, COPY_FILE, INDEX_FILE, EXPORT_FILE, "fake.json"})
_OF_THE_WRITER = frozenset({"_name_or_path", "transformers_version", "quantization_status", "dtype", "torch_dtype"})
"""Keys of config.json that say who wrote it, or what an engine's own `dtype` overrides."""
_UNORDERED = frozenset({"ignore", "targets"})
"""Keys whose lists are sets of modules. All other lists are kept in order: `layer_types` is the architecture."""


def check_place(served: Path, other: Path) -> None:
    """Raises `BadRequest` naming the first file that differs."""
    if _config(served) != _config(other):
        raise BadRequest(_differs(CONFIG_FILE, served, other), param="path")
    for name in sorted(_texts(served) | _texts(other)):
        if _bytes(served / name) != _bytes(other / name):
            raise BadRequest(_differs(name, served, other), param="path")


def _differs(name: str, served: Path, other: Path) -> str:
    return (
        f"{name} of {other} is not that of {served}, so it does not fit the place of it in a running engine: "
        "release it by a rolling swap"
    )


def _config(model: Path) -> Any:
    try:
        return _plain(json.loads((model / CONFIG_FILE).read_bytes()))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{model / CONFIG_FILE} cannot be read as JSON", param="path") from error


def _plain(value: Any) -> Any:
    """Without what says nothing: keys of the writer, nulls, empty objects, the order of modules' names."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    plain = {key: _plain(_in_order(key, one)) for key, one in value.items() if not _is_of_the_writer(key, value)}
    return {key: one for key, one in plain.items() if one is not None and one != {}}


def _in_order(key: str, value: Any) -> Any:
    is_names = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return sorted(value) if key in _UNORDERED and is_names else value


def _is_of_the_writer(key: str, table: dict[str, Any]) -> bool:
    """compressed-tensors writes its own `version`; elsewhere that is the format's (AWQ's `gemm`, say)."""
    return key in _OF_THE_WRITER or (key == "version" and table.get("quant_method") == "compressed-tensors")


def _texts(model: Path) -> set[str]:
    return {path.name for path in model.iterdir() if path.suffix in _TEXTS} - _OF_ITS_OWN


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
