"""The rolling swap over replicas that a test can make fail, with the real store, routes and watches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from gateway_stack import until, version_row

from engines.actor import ReplicaStatus
from engines.adapter import Parcel
from engines.config import EngineConfig
from engines.errors import Conflict, EngineDown, Refused
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
from gateway.generation import GenerationRow, GenerationState
from gateway.lineup import Lineup
from gateway.membership import Membership
from gateway.metrics import Metrics
from gateway.monitor import Monitor, Watch
from gateway.rolling import RollingSwap
from gateway.route import RouteTable
from gateway.steps import StepClock
from gateway.store import StateChange, Store, open_store
from gateway.swap import Ground, Side
from gateway.telling import Teller
from gateway.types import VersionState
from gateway.users import UserLoads

ALIAS = "vqa"
RECORD = ExportRecord(text="what?", answer="this", num_tokens=1, token_ids=(7,), logprobs=(-1.0,))


class RolledReplica:
    """Comes up unless it may not; writes into `events` what it is made to do."""

    def __init__(self, site: Site, engine: str, number: int) -> None:
        self.name = f"{engine}/{number}"
        self.engine = engine
        self._site = site
        self._state = EngineState.NEW

    async def start(self) -> Endpoint:
        if self.name in self._site.broken:
            raise EngineDown(f"{self.name} does not start")
        self._site.events.append(f"start {self.name}")
        self._state = EngineState.READY
        return Endpoint(f"http://{self.name}", "token")

    async def restart(self) -> Endpoint:
        return await self.start()

    async def status(self) -> ReplicaStatus:
        endpoint = Endpoint(f"http://{self.name}", "token")
        return ReplicaStatus(EngineHealth(self._state), endpoint, None, (), (), 4, Path("/nowhere"))

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        assert version == VersionName(self.engine, 0)
        return tuple(ProbeScore((7,), (self._site.logprob,)) for _ in prompts)

    async def end(self) -> None:
        self._site.events.append(f"end {self.name}")

    async def swap(self) -> Endpoint:
        raise AssertionError("a rolling swap ends the old ones")

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
    """An engine of three replicas in service."""

    def __init__(self, folder: Path, num_replicas: int = 3) -> None:
        self.events: list[str] = []
        self.broken: set[str] = set()
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
            lambda row, number: RolledReplica(self, row.name, number),
            lambda replica: Watch(replica, self.routes, self.membership, self.board, Metrics(), 60.0),
            *(self.monitor, teller, self.membership, self.routes, self.board),
        )
        self.ground = Ground(self.lineup, self.store, self.routes, self.membership)

    def begin(self) -> GenerationRow:
        return self.store.generations.begin("small", Path("new"), "sha256:new")

    def swap(self, new: GenerationRow, records: tuple[ExportRecord, ...] = ()) -> RollingSwap:
        sides = Side(self.old, self.config), Side(new, self.config)
        return RollingSwap(*sides, records, self.ground, StepClock(Metrics()), drain_timeout_s=5.0)

    def in_service(self) -> list[str]:
        return sorted(route.name for route in self.routes.snapshot.replicas.values() if route.ready)

    async def wait_in_service(self, *names: str) -> None:
        await until(lambda: self.in_service() == sorted(names))


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    watching = asyncio.create_task(site.monitor.run())
    await site.lineup.open(site.old, site.config.replicas)
    await site.wait_in_service("small/0", "small/1", "small/2")
    site.events.clear()
    yield site
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    site.store.close()


async def test_a_new_replica_is_up_before_an_old_one_goes(site: Site) -> None:
    await site.swap(site.begin(), (RECORD,)).run()
    assert site.events == [
        *("start small.g2/0", "end small/0"),
        *("start small.g2/1", "end small/1"),
        *("start small.g2/2", "end small/2"),
    ]
    assert site.in_service() == ["small.g2/0", "small.g2/1", "small.g2/2"]
    assert [view.name for view in site.board.views(site.routes)] == site.in_service()


async def test_the_flip_moves_every_alias_and_retires_what_the_old_base_carried(site: Site) -> None:
    name = VersionName(ALIAS, 1)
    site.store.versions.add(version_row(name))
    changes = [StateChange(name, state) for state in (VersionState.STAGED, VersionState.PROBED, VersionState.LIVE)]
    site.store.aliases.flip(ALIAS, name, site.old.base, 0, changes)
    site.store.aliases.ensure("other", "small")
    new = site.begin()
    await site.swap(new).run()
    for alias, generation in ((ALIAS, 2), ("other", 1)):
        row = site.store.aliases.get(alias)
        assert (row.engine, row.live, row.previous, row.generation) == ("small.g2", new.base, None, generation)
    assert site.routes.resolve(ALIAS).version == new.base
    assert site.store.versions.get(name).state is VersionState.RETIRED
    states = [row.state for row in site.store.generations.of("small")]
    assert states == [GenerationState.RETIRED, GenerationState.LIVE]


async def test_until_half_are_new_the_alias_names_the_old_base_and_its_replicas_answer(site: Site) -> None:
    new = site.begin()
    site.broken.add("small.g2/1")  # the second of three, which would bring the flip
    with pytest.raises(EngineDown):
        await site.swap(new).run()
    assert site.routes.resolve(ALIAS).version == site.old.base
    await site.wait_in_service("small/0", "small/1", "small/2")  # the one that had gone is back
    undone = ["end small.g2/0", "end small.g2/1", "start small/0"]
    assert site.events[:2] == ["start small.g2/0", "end small/0"]
    assert sorted(site.events[2:]) == undone
    assert site.store.aliases.get(ALIAS).generation == 0


async def test_what_answers_otherwise_than_its_export_is_refused_and_ends(site: Site) -> None:
    site.logprob = -3.0
    with pytest.raises(Refused, match="does not serve what was exported"):
        await site.swap(site.begin(), (RECORD,)).run()
    assert site.events == ["start small.g2/0", "end small.g2/0"]
    assert site.in_service() == ["small/0", "small/1", "small/2"]


async def test_a_replica_that_fails_after_the_flip_leaves_the_release_standing(site: Site) -> None:
    site.broken.add("small.g2/2")
    swap = site.swap(site.begin())
    with pytest.raises(EngineDown):
        await swap.run()
    assert swap.is_flipped
    assert site.in_service() == ["small.g2/0", "small.g2/1"]
    site.broken.clear()
    await site.wait_in_service("small.g2/0", "small.g2/1", "small.g2/2")  # by its watch


async def test_an_old_replica_goes_only_once_its_last_request_has_ended(site: Site) -> None:
    target = site.routes.resolve(ALIAS)
    with site.routes.hold(target):
        going = asyncio.create_task(site.lineup.remove(target.replica.name, 5.0))
        await site.wait_in_service(*({"small/0", "small/1", "small/2"} - {target.replica.name}))
        assert not site.events
    await going
    assert site.events == [f"end {target.replica.name}"]


def test_a_release_begins_only_where_none_is_under_way(site: Site) -> None:
    first = site.begin()
    with pytest.raises(Conflict, match=r"small\.g2 is being released"):
        site.begin()
    site.store.generations.fail(first, "why not")
    assert site.begin().name == "small.g3"  # a name is never used twice
    with pytest.raises(Conflict, match="failed"):
        site.store.generations.flip(site.old, first)
    assert site.store.generations.ensure("small", Path("old")).name == "small"


def test_generation_1_serves_what_is_configured(site: Site) -> None:
    row = site.store.generations.ensure("small", Path("another"))
    assert (row.number, row.model) == (1, Path("another"))
    assert row.created <= datetime.now(UTC)
