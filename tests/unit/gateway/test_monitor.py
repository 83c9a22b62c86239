"""The watch over replicas: what is ready is routed, what is down is started, and one mishap ends nothing."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from engines.actor import ReplicaStatus
from engines.errors import DeadlineExceeded, NotFound
from engines.types import Endpoint, EngineHealth, EngineState, LoadedAdapter, ProbePrompt, ProbeScore, VersionName
from gateway.metrics import Metrics
from gateway.monitor import Monitor
from gateway.route import RouteTable
from gateway.types import AliasRow

ENDPOINT = Endpoint("http://127.0.0.1:1", "token")
LIVE = VersionName("vqa", 1)


class WatchedReplica:
    """Says what a test tells it to."""

    name = "small/0"
    engine = "small"

    def __init__(self) -> None:
        self.state = EngineState.NEW
        self.trouble: Exception | None = None
        self.lost_lease = False
        self.num_starts = self.num_revivals = 0
        self.renewed: list[tuple[VersionName, ...]] = []

    async def start(self) -> Endpoint:
        self.num_starts += 1
        self.state = EngineState.READY
        return ENDPOINT

    async def status(self) -> ReplicaStatus:
        if self.trouble is not None:
            raise self.trouble
        return ReplicaStatus(EngineHealth(self.state), ENDPOINT, None, (), ())

    async def renew(self, versions: Sequence[VersionName]) -> None:
        if self.lost_lease:
            raise NotFound("lease it again")
        self.renewed.append(tuple(versions))

    async def revive(self) -> None:
        self.num_revivals += 1

    async def stage(self, version: VersionName, path: Path) -> LoadedAdapter:
        raise AssertionError("the publisher stages")

    async def unload(self, version: VersionName) -> None:
        raise AssertionError("the publisher unloads")

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        raise AssertionError("the publisher probes")


class CountingPublisher:
    def __init__(self) -> None:
        self.restaged: list[str] = []

    async def restage(self, replica: WatchedReplica) -> None:
        self.restaged.append(replica.name)

    def adapters_of(self, engine: str) -> tuple[VersionName, ...]:
        return (LIVE,)


class Watch:
    def __init__(self) -> None:
        self.replica = WatchedReplica()
        self.routes = RouteTable()
        self.routes.set_alias(AliasRow("vqa", "small", LIVE, None, 1))
        self.publisher = CountingPublisher()
        self.monitor = Monitor([self.replica], self.routes, self.publisher, Metrics())  # type: ignore[arg-type]

    def is_routed(self) -> bool:
        return self.routes.is_ready()

    async def miss(self) -> None:
        with pytest.raises(type(self.replica.trouble)):  # type: ignore[arg-type]
            await self.monitor.look(self.replica)
        assert self.replica.trouble is not None
        await self.monitor._miss(self.replica, self.replica.trouble)


@pytest.fixture
def watch() -> Watch:
    return Watch()


async def test_a_replica_is_routed_after_it_holds_what_is_named(watch: Watch) -> None:
    await watch.monitor.admit(watch.replica)
    assert watch.is_routed()
    assert watch.publisher.restaged == ["small/0"]


@pytest.mark.parametrize("state", [EngineState.NEW, EngineState.STOPPED, EngineState.FAILED])
async def test_an_engine_that_is_down_is_started_and_routed(watch: Watch, state: EngineState) -> None:
    await watch.monitor.admit(watch.replica)
    watch.replica.state = state
    await watch.monitor.look(watch.replica)
    assert watch.is_routed()
    assert watch.replica.num_starts == 2


@pytest.mark.parametrize("state", [EngineState.STARTING, EngineState.STOPPING])
async def test_an_engine_on_its_way_is_left_alone_and_takes_no_traffic(watch: Watch, state: EngineState) -> None:
    await watch.monitor.admit(watch.replica)
    watch.replica.state = state
    await watch.monitor.look(watch.replica)
    assert not watch.is_routed()
    assert watch.replica.num_starts == 1


async def test_a_replica_that_answers_again_takes_traffic_again(watch: Watch) -> None:
    await watch.monitor.admit(watch.replica)
    watch.replica.trouble = DeadlineExceeded("no answer")
    for _ in range(3):
        await watch.miss()
    assert not watch.is_routed()
    assert watch.replica.num_revivals == 1
    watch.replica.trouble = None
    await watch.monitor.look(watch.replica)
    assert watch.is_routed()


async def test_one_missed_look_withdraws_nothing(watch: Watch) -> None:
    await watch.monitor.admit(watch.replica)
    watch.replica.trouble = RuntimeError("of whatever kind")
    await watch.miss()
    assert watch.is_routed()


async def test_leases_are_renewed_and_a_lost_one_is_loaded_again(watch: Watch) -> None:
    await watch.monitor.admit(watch.replica)
    await watch.monitor.look(watch.replica, renew=True)
    assert watch.replica.renewed == [(LIVE,)]
    watch.replica.lost_lease = True
    await watch.monitor.look(watch.replica, renew=True)
    assert watch.publisher.restaged == ["small/0", "small/0"]
