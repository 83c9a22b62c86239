"""A replica that serves old weights under a new name and says nothing of it, on a real engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engines.actor import EngineActor
from engines.adapter import WEIGHTS_FILE, Parcel
from engines.config import EngineConfig
from engines.types import LoadedAdapter, VersionName


class PlantedReplica(EngineActor):
    """While `is_stale`, its engine is handed the files that were sent before; it reports the hash of the newest."""

    name = "own/0"
    engine = "own"

    def __init__(self, config: EngineConfig, root: Path) -> None:
        super().__init__(self.engine, config, root / "logs", root / "copies")
        self.is_stale = False
        self._before: Parcel | None = None
        self._sent: dict[VersionName, str] = {}

    async def copy(self, parcel: Parcel) -> None:
        self._sent[parcel.version] = parcel.sha256_of(WEIGHTS_FILE) or ""
        before, self._before = self._before, parcel
        if self.is_stale:
            assert before is not None, "there is no version before the first"
            parcel = replace(before, version=parcel.version)
        await super().copy(parcel)

    async def load(self, owner: str, version: VersionName, ttl_s: float) -> LoadedAdapter:
        return replace(await super().load(owner, version, ttl_s), sha256=self._sent[version])
