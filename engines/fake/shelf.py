"""The adapters that the fake holds. It reads an adapter's files as an engine would, and keeps their hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engines.adapter import Manifest, ProbeRecord
from engines.adapter.directory import WEIGHTS_FILE
from engines.adapter.files import open_regular, read_bounded
from engines.adapter.manifest import MANIFEST_FILE, read_manifest
from engines.adapter.peft_config import CONFIG_FILE, MAX_CONFIG_BYTES, parse_peft_config
from engines.adapter.tensors import TensorHeader, read_header
from engines.adapter.verify import refusing
from engines.errors import AdapterRefused, Conflict, NoSlot
from engines.wire import AdapterReply, AddAdapter

LORA_A = ".lora_A.weight"


class FakeShelf:
    """At most `max_adapters`, each of rank `max_rank` or less."""

    def __init__(self, max_adapters: int, max_rank: int) -> None:
        self._max_adapters = max_adapters
        self._max_rank = max_rank
        self._held: dict[str, AdapterReply] = {}
        self._paths: dict[str, str] = {}
        self._probes: dict[str, tuple[ProbeRecord, ...]] = {}

    def add(self, body: AddAdapter) -> AdapterReply:
        """Raises `AdapterRefused`, `Conflict` or `NoSlot`, and then holds what it held."""
        if (known := self._held.get(body.version)) is not None:
            if (known.slot_id, self._paths[body.version]) != (body.slot_id, body.path):
                raise Conflict(
                    f"{body.version} is loaded from {self._paths[body.version]}; a version is never loaded twice"
                )
            return known
        if body.slot_id in {held.slot_id for held in self._held.values()}:
            raise Conflict(f"slot id {body.slot_id} is taken; {body.version} needs an id of its own")
        if len(self._held) >= self._max_adapters:
            raise NoSlot(f"all {self._max_adapters} slots are taken by {', '.join(sorted(self._held))}; drop one first")
        reply, manifest = self._read(body)
        self._held[body.version] = reply
        self._paths[body.version] = body.path
        self._probes[body.version] = () if manifest is None else manifest.probe
        return reply

    def remove(self, version: str) -> None:
        for table in (self._held, self._paths, self._probes):
            table.pop(version, None)

    def clear(self) -> None:
        for version in tuple(self._held):
            self.remove(version)

    def held(self) -> list[AdapterReply]:
        return sorted(self._held.values(), key=lambda held: held.slot_id)

    def sha256_of(self, version: str) -> str | None:
        """None if no such adapter is held."""
        held = self._held.get(version)
        return held.sha256 if held is not None else None

    def record(self, version: str, text: str, answer: str, image: str | None) -> ProbeRecord | None:
        """What the manifest of `version`, or else of any adapter held, says of this prompt."""
        records = (record for probe in (self._probes.get(version, ()), *self._probes.values()) for record in probe)
        return next((r for r in records if (r.text, r.answer, r.image) == (text, answer, image)), None)

    def _read(self, body: AddAdapter) -> tuple[AdapterReply, Manifest | None]:
        directory = Path(body.path)
        if not directory.is_dir():
            raise AdapterRefused(f"{body.path} is no directory; check the path")
        with refusing():
            config = parse_peft_config(read_bounded(directory / CONFIG_FILE, MAX_CONFIG_BYTES))
            manifest = read_manifest(directory) if (directory / MANIFEST_FILE).exists() else None
            with open_regular(directory / WEIGHTS_FILE) as file:
                modules = _modules(read_header(file, WEIGHTS_FILE))
        if config.r > self._max_rank:
            raise AdapterRefused(f"LoRA rank {config.r} is greater than max_lora_rank {self._max_rank}")
        sha256 = hashlib.sha256((directory / WEIGHTS_FILE).read_bytes()).hexdigest()
        return AdapterReply(version=body.version, slot_id=body.slot_id, sha256=sha256, modules=modules), manifest


def _modules(header: TensorHeader) -> list[str]:
    """Names of the modules that there is a lora_A for, without PEFT's prefix."""
    names = (tensor.name for tensor in header.tensors if tensor.name.endswith(LORA_A))
    modules = sorted(name.removesuffix(LORA_A).removeprefix("base_model.model.") for name in names)
    if not modules:
        raise AdapterRefused(f"{WEIGHTS_FILE} matched no module of the model")
    return modules
