"""Replicas that a swap acts on and a test can make fail, with the real store, routes, watches and lineup."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway_stack import until

from engines.actor import ReplicaStatus
from engines.adapter import Parcel
from engines.config import EngineConfig
from engines.errors import EngineDown, EngineFault
from engines.export_probe import ExportRecord
from engines.types import (
    Endpoint,
    EngineHealth,
    EngineState,
    LoadedAdapter,
    ProbePrompt,
    ProbeScore,
    UserLoad,
    VersionName,
)
from gateway.board import ReplicaBoard
from gateway.generation import GenerationRow
from gateway.in_place import InPlaceSwap
from gateway.lineup import Lineup
from gateway.membership import Membership
from gateway.metrics import Metrics
from gateway.monitor import Monitor, Watch
from gateway.rolling import RollingSwap
from gateway.route import RouteTable
from gateway.steps import StepClock
from gateway.store import Store, open_store
from gateway.swap import Ground, Side, Swap
from gateway.telling import Teller
from gateway.users import UserLoads

ALIAS = "vqa"
RECORD = ExportRecord(text="what?", answer="this", num_tokens=1, token_ids=(7,), logprobs=(-1.0,))


@dataclass
class Hosted:
    """What an actor serves."""

    engine: str
    state: EngineState = EngineState.NEW


class RolledReplica:
    """Comes up unless it may not; writes into `events` what it is made to do."""

    def __init__(self, site: Site, engine: str, number: int, actor: Hosted) -> None:
        self.name = f"{engine}/{number}"
        self.engine = engine
        self._site = site
        self._actor = actor

    async def start(self) -> Endpoint:
        if self.name in self._site.broken:
            raise EngineDown(f"{self.name} does not start")
        self._site.events.append(f"start {self.name}")
        self._actor.engine, self._actor.state = self.engine, EngineState.READY
        return Endpoint(f"http://{self.name}", "token")

    async def restart(self) -> Endpoint:
        return await self.start()

    async def swap(self) -> Endpoint:
        if self.name in self._site.broken | self._site.broken_swaps:
            raise EngineFault(f"{self.name} did not load the weights")
        self._site.events.append(f"swap {self.name}")
        self._actor.engine = self.engine
        return Endpoint(f"http://{self.name}", "token")

    async def status(self) -> ReplicaStatus:
        endpoint = Endpoint(f"http://{self.name}", "token")
        health = EngineHealth(self._actor.state)
        return ReplicaStatus(health, endpoint, None, (), (), 4, Path("/nowhere"), engine=self._actor.engine)

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        assert version == VersionName(self.engine, 0)
        return tuple(ProbeScore((7,), (self._site.logprob,)) for _ in prompts)

    async def end(self) -> None:
        if self.name in self._site.endless:
            raise EngineDown(f"{self.name} cannot be reached")
        self._site.events.append(f"end {self.name}")
        self._actor.state = EngineState.STOPPED

    async def keep_only(self, owner: str, versions: Iterable[VersionName]) -> None:
        return

    async def renew(self, owner: str, versions: Sequence[VersionName], ttl_s: float) -> None:
        return

    async def note_users(self, load: UserLoad) -> None:
        return

    async def revive(self) -> None:
        return

    async def copy(self, parcel: Parcel) -> None:
        raise AssertionError("only bases are named here")

    async def load(self, owner: str, version: VersionName, ttl_s: float) -> LoadedAdapter:
        raise AssertionError("only bases are named here")

    async def release(self, owner: str, version: VersionName) -> None:
        raise AssertionError("only bases are named here")


class Site:
    """An engine whose replicas are in service, once they are opened."""

    def __init__(self, folder: Path, num_replicas: int) -> None:
        self.events: list[str] = []
        self.actors: dict[tuple[str, int], Hosted] = {}
        self.broken: set[str] = set()
        self.broken_swaps: set[str] = set()
        self.endless: set[str] = set()
        self.logprob = -1.0
        self.config = EngineConfig(model="old", kind="fake", replicas=num_replicas, start_timeout_s=5)
        self.store: Store = open_store(f"sqlite:///{folder}/tandem.db")
        self.old = self.store.generations.ensure("small", Path("old"))
        self.routes = RouteTable()
        self.routes.set_alias(self.store.aliases.ensure(ALIAS, "small"))
        self.membership = Membership(self.store, self.routes)
        self.board = ReplicaBoard()
        self.monitor = Monitor()
        teller = Teller((), UserLoads(), self.routes)
        self.lineup = Lineup(
            self.make,
            lambda replica: Watch(replica, self.routes, self.membership, self.board, Metrics(), 60.0),
            *(self.monitor, teller, self.membership, self.routes, self.board),
        )
        self.ground = Ground(self.lineup, self.store, self.routes, self.membership)

    def make(self, row: GenerationRow, number: int) -> RolledReplica:
        actor = self.actors.setdefault((row.actors, number), Hosted(row.name))
        return RolledReplica(self, row.name, number, actor)

    def begin(self, host: str | None = None) -> GenerationRow:
        return self.store.generations.begin("small", Path("new"), "sha256:new", host)

    def swap(self, new: GenerationRow, records: tuple[ExportRecord, ...] = (), drain_timeout_s: float = 5.0) -> Swap:
        kind: type[Swap] = InPlaceSwap if new.host else RollingSwap
        sides = Side(self.old, self.config), Side(new, self.config)
        return kind(*sides, records, self.ground, StepClock(Metrics()), drain_timeout_s)

    def in_service(self) -> list[str]:
        return sorted(route.name for route in self.routes.snapshot.replicas.values() if route.ready)

    async def wait_in_service(self, *names: str) -> None:
        await until(lambda: self.in_service() == sorted(names))


@asynccontextmanager
async def open_site(folder: Path, num_replicas: int) -> AsyncIterator[Site]:
    site = Site(folder, num_replicas)
    watching = asyncio.create_task(site.monitor.run())
    await site.lineup.open(site.old, num_replicas)
    await site.wait_in_service(*(f"small/{number}" for number in range(num_replicas)))
    site.events.clear()
    yield site
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    site.store.close()
