"""Replicas without Ray: each a real actor object in this process, with a real process of the fake engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from engines.actor import EngineActor, ReplicaStatus
from engines.adapter import Parcel
from engines.config import EngineConfig
from engines.types import Endpoint, LoadedAdapter, ProbePrompt, ProbeScore, UserLoad, VersionName
from gateway.config import TandemConfig
from gateway.generation import GenerationRow
from gateway.release import config_of


class LocalReplica:
    """Implements `gateway.lineup.KeptReplica`."""

    def __init__(self, engine: str, number: int, config: EngineConfig, actor: EngineActor) -> None:
        self.name = f"{engine}/{number}"
        self.engine = engine
        self._config = config
        self._actor = actor

    async def start(self) -> Endpoint:
        return await self._actor.host(self.engine, self._config)

    async def restart(self) -> Endpoint:
        return await self._actor.restart()

    async def swap(self) -> Endpoint:
        return await self._actor.swap(self.engine, self._config)

    async def end(self) -> None:
        await self._actor.stop()

    async def revive(self) -> None:
        return

    async def copy(self, parcel: Parcel) -> None:
        await self._actor.copy(parcel)

    async def has_copy(self, version: VersionName, hashes: Mapping[str, str]) -> bool:
        return await self._actor.has_copy(version, hashes)

    async def load(self, owner: str, version: VersionName, ttl_s: float) -> LoadedAdapter:
        return await self._actor.load(owner, version, ttl_s)

    async def release(self, owner: str, version: VersionName) -> None:
        await self._actor.release(owner, version)

    async def keep_only(self, owner: str, versions: Iterable[VersionName]) -> None:
        await self._actor.keep_only(owner, versions)

    async def renew(self, owner: str, versions: Sequence[VersionName], ttl_s: float) -> None:
        await self._actor.renew(owner, versions, ttl_s)

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        return await self._actor.probe(version, prompts)

    async def note_users(self, load: UserLoad) -> None:
        await self._actor.note_users(load)

    async def status(self) -> ReplicaStatus:
        return await self._actor.status()


class LocalActors:
    """Finds an actor again by its generation and number, as Ray does by its name."""

    def __init__(self, config: TandemConfig, root: Path) -> None:
        self.config = config
        self.root = root
        self._actors: dict[tuple[str, int], EngineActor] = {}

    def make(self, row: GenerationRow, number: int) -> LocalReplica:
        config = config_of(row, self.config)
        place = self.root / f"{row.actors}-{number}"
        if (row.actors, number) not in self._actors:
            self._actors[row.actors, number] = EngineActor(row.name, config, place / "logs", place / "copies")
        return LocalReplica(row.name, number, config, self._actors[row.actors, number])

    async def stop(self) -> None:
        for actor in self._actors.values():
            await actor.stop()
