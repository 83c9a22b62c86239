"""What an adapter's files say, read before SGLang sees them: the weights' hash, and the modules that it will match."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .refusal import Refusal
from .settings import Settings

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 64 << 20
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class AdapterFiles:
    """`modules` are names of the checkpoint, sorted: those that SGLang has a layer for, with both of LoRA's parts."""

    sha256: str
    modules: tuple[str, ...]


def read_adapter(version: str, directory: str, settings: Settings, num_layers: int) -> AdapterFiles:
    """Blocks on files. Raises `Refusal`."""
    root = Path(directory)
    try:
        with (root / WEIGHTS_FILE).open("rb") as file:
            names = _tensor_names(file)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with (root / CONFIG_FILE).open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
        rank = int(config["r"])
    except OSError as error:
        raise _refused(f"{error.filename or root} cannot be read: {error.strerror}; check the directory") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _refused(f"the files of {version} are no adapter as PEFT saves it", repr(error)) from error
    if rank > settings.max_lora_rank:
        raise _refused(
            f"{version} is too large", f"LoRA rank {rank} is greater than max_lora_rank {settings.max_lora_rank}"
        )
    modules = matched(names, settings.target_modules, num_layers)
    if not modules:
        raise _refused(f"{version} matched no module of the model; was it made for another base?")
    return AdapterFiles(sha256, modules)


def matched(tensor_names: set[str], target_modules: tuple[str, ...], num_layers: int) -> tuple[str, ...]:
    """SGLang's own rule: it takes a tensor by the number of its layer and its module's last name, and leaves others
    out without a word. It does not report what it took, so this is computed."""
    found = []
    for name in tensor_names:
        module = name.removesuffix(LORA_A)
        layer = _LAYER.search(module)
        if module == name or module + LORA_B not in tensor_names or layer is None:
            continue
        if int(layer[1]) < num_layers and module.rsplit(".", 1)[-1] in target_modules:
            found.append(module.removeprefix(PEFT_PREFIX))
    return tuple(sorted(found))


def _tensor_names(file: Any) -> set[str]:
    """Of a safetensors file: eight bytes with the header's length (little endian), then the header as JSON."""
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    return set(header) - {"__metadata__"}


def _refused(message: str, detail: str = "") -> Refusal:
    return Refusal(400, "adapter_refused", message, detail)
