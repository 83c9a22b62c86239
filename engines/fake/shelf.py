"""The adapters that the fake holds. It reads an adapter's files as an engine would, and keeps their hash."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from pydantic import BaseModel, ValidationError

from engines.errors import AdapterRefused, Conflict, NoSlot
from engines.wire import AdapterReply, AddAdapter, ScoreBody

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MANIFEST_FILE = "manifest.json"
LORA_A = ".lora_A.weight"
MAX_HEADER_BYTES = 16 << 20


class PeftConfig(BaseModel):
    r: int


class ProbeRecord(BaseModel):
    """What the learner measured of one prompt; the fake answers a probe as the learner did."""

    text: str
    answer: str
    image: str | None = None
    token_ids: list[int]
    base_logprobs: list[float]
    adapter_logprobs: list[float]

    def base_score(self) -> ScoreBody:
        return ScoreBody(token_ids=self.token_ids, logprobs=self.base_logprobs)

    def adapter_score(self) -> ScoreBody:
        return ScoreBody(token_ids=self.token_ids, logprobs=self.adapter_logprobs)


class Manifest(BaseModel):
    probe: list[ProbeRecord] = []


class FakeShelf:
    """At most `max_adapters`, each of rank `max_rank` or less."""

    def __init__(self, max_adapters: int, max_rank: int) -> None:
        self._max_adapters = max_adapters
        self._max_rank = max_rank
        self._held: dict[str, AdapterReply] = {}
        self._paths: dict[str, str] = {}
        self._manifests: dict[str, Manifest] = {}

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
        self._manifests[body.version] = manifest
        return reply

    def remove(self, version: str) -> None:
        for table in (self._held, self._paths, self._manifests):
            table.pop(version, None)

    def held(self) -> list[AdapterReply]:
        return sorted(self._held.values(), key=lambda held: held.slot_id)

    def sha256_of(self, version: str) -> str | None:
        """None if no such adapter is held."""
        held = self._held.get(version)
        return held.sha256 if held is not None else None

    def record(self, version: str, text: str, answer: str, image: str | None) -> ProbeRecord | None:
        """What the manifest of `version`, or else of any adapter held, says of this prompt."""
        own = [self._manifests[version]] if version in self._manifests else []
        records = (record for manifest in (*own, *self._manifests.values()) for record in manifest.probe)
        return next((r for r in records if (r.text, r.answer, r.image) == (text, answer, image)), None)

    def _read(self, body: AddAdapter) -> tuple[AdapterReply, Manifest]:
        directory = Path(body.path)
        try:
            config = PeftConfig.model_validate_json((directory / CONFIG_FILE).read_bytes())
            weights = (directory / WEIGHTS_FILE).read_bytes()
            manifest = _manifest(directory / MANIFEST_FILE)
        except OSError as error:
            raise AdapterRefused(f"No adapter found for {body.path}: {error.strerror}; check the directory") from error
        except ValidationError as error:
            raise AdapterRefused(f"{body.path} has a {CONFIG_FILE} or {MANIFEST_FILE} that cannot be read") from error
        if config.r > self._max_rank:
            raise AdapterRefused(f"LoRA rank {config.r} is greater than max_lora_rank {self._max_rank}")
        sha256 = hashlib.sha256(weights).hexdigest()
        reply = AdapterReply(version=body.version, slot_id=body.slot_id, sha256=sha256, modules=_modules(weights))
        return reply, manifest


def _manifest(path: Path) -> Manifest:
    return Manifest.model_validate_json(path.read_bytes()) if path.exists() else Manifest()


def _modules(weights: bytes) -> list[str]:
    """Names of the modules that a safetensors file has a lora_A for, without PEFT's prefix."""
    try:
        (length,) = struct.unpack("<Q", weights[:8])
        names = json.loads(weights[8 : 8 + min(length, MAX_HEADER_BYTES)])
    except (struct.error, ValueError) as error:
        raise AdapterRefused(f"{WEIGHTS_FILE} is not a safetensors file") from error
    modules = sorted(n.removesuffix(LORA_A).removeprefix("base_model.model.") for n in names if n.endswith(LORA_A))
    if not modules:
        raise AdapterRefused(f"{WEIGHTS_FILE} matched no module of the model")
    return modules
