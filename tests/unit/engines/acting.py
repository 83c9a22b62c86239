"""Versions for the tests of an actor: written, copied, loaded."""

from __future__ import annotations

from pathlib import Path

from tiny_adapter import lora_tensors, write_adapter

from engines.actor import EngineActor
from engines.adapter import pack
from engines.types import VersionName

MAX_LORAS = 3
OWNER = "serving"


def version(number: int) -> VersionName:
    return VersionName("vqa", number)


def adapter(tmp_path: Path, number: int) -> Path:
    return write_adapter(tmp_path / f"adapter-{number}", lora_tensors(seed=number))


async def load(actor: EngineActor, tmp_path: Path, number: int, owner: str = OWNER, ttl_s: float = 60) -> None:
    await actor.copy(pack(version(number), adapter(tmp_path, number)))
    await actor.load(owner, version(number), ttl_s)


async def held(actor: EngineActor) -> list[VersionName]:
    return [loaded.version for loaded in (await actor.status()).adapters]
