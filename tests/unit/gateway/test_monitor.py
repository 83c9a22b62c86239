"""The watch over a replica: what is ready is in service, what is down is started, and one mishap ends nothing."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from engines.actor import ReplicaStatus
from engines.adapter import Parcel
from engines.errors import DeadlineExceeded, EngineDown, NotFound
from engines.types import Endpoint, EngineHealth, EngineState, LoadedAdapter, ProbePrompt, ProbeScore, VersionName
from gateway.board import ReplicaBoard
from gateway.membership import Membership
from gateway.metrics import Metrics
from gateway.monitor import Monitor, Patience, Watch
from gateway.route import RouteTable
from gateway.store import Store, open_store

HANG_TIMEOUT_S = 30.0


class WatchedReplica:
    """Says what a test tells it to. Each start makes it answer at another endpoint."""

    def __init__(self, name: str = "small/0", engine: str = "small") -> None:
        self.name = name
        self.engine = engine
        self.state = EngineState.NEW
        self.trouble: Exception | None = None
        self.fail_start: Exception | None = None
        self.port = 0
        """Where it listens; 0: another that nobody listens at for each start."""
        self.num_starts = self.num_restarts = self.num_revivals = self.num_renewals = 0

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"http://127.0.0.1:{self.port or self.num_starts + self.num_restarts}", "token")

    async def start(self) -> Endpoint:
        if self.fail_start is not None:
            raise self.fail_start
        self.num_starts += 1
        self.state = EngineState.READY
        return self.endpoint

    async def restart(self) -> Endpoint:
        self.num_restarts += 1
        self.state = EngineState.READY
        return self.endpoint

    async def status(self) -> ReplicaStatus:
        if self.trouble is not None:
            raise self.trouble
        return ReplicaStatus(EngineHealth(self.state), self.endpoint, None, (), (), 4, Path("/nowhere"))

    async def renew(self, owner: str, versions: Sequence[VersionName], ttl_s: float) -> None:
        self.num_renewals += 1

    async def keep_only(self, owner: str, versions: Iterable[VersionName]) -> None:
        return

    async def revive(self) -> None:
        self.num_revivals += 1

    async def copy(self, parcel: Parcel) -> None:
        raise AssertionError("only bases are named here")

    async def load(self, owner: str, version: VersionName, ttl_s: float) -> LoadedAdapter:
        raise AssertionError("only bases are named here")

    async def release(self, owner: str, version: VersionName) -> None:
        raise AssertionError("the publisher releases")

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        raise AssertionError("the publisher probes")


class Scene:
    def __init__(self, store: Store) -> None:
        self.replica = WatchedReplica()
        self.routes = RouteTable()
        self.routes.set_alias(store.aliases.ensure("vqa", "small"))
        self.membership = Membership(store, self.routes)
        self.board = ReplicaBoard()
        self.watch = self.watch_over(self.replica)

    def watch_over(self, replica: WatchedReplica) -> Watch:
        return Watch(replica, self.routes, self.membership, self.board, Metrics(), HANG_TIMEOUT_S)

    def is_routed(self) -> bool:
        return self.routes.is_ready()

    def is_member(self) -> bool:
        return self.membership.is_member(self.replica)

    async def look(self, now_s: float = 0.0) -> None:
        """As the watch does."""
        try:
            await self.watch.look(now_s)
        except Exception as error:  # as the watch does
            await self.watch._miss(error)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    store = open_store(f"sqlite:///{tmp_path}/tandem.db")
    yield Scene(store)
    store.close()


@pytest.mark.parametrize("state", [EngineState.NEW, EngineState.STOPPED, EngineState.FAILED])
async def test_an_engine_that_is_down_is_started_and_routed(scene: Scene, state: EngineState) -> None:
    scene.replica.state = state
    await scene.look()
    assert scene.is_routed()
    assert scene.is_member()
    assert scene.replica.num_starts == 1


@pytest.mark.parametrize("state", [EngineState.STARTING, EngineState.STOPPING, EngineState.UNRESPONSIVE])
async def test_an_engine_on_its_way_is_left_alone_and_takes_no_traffic(scene: Scene, state: EngineState) -> None:
    await scene.look()
    scene.replica.state = state
    await scene.look()
    assert not scene.is_routed()
    assert not scene.is_member()
    assert scene.replica.num_starts == 1


async def test_an_engine_that_was_started_anew_by_somebody_joins_again(scene: Scene) -> None:
    await scene.look()
    scene.replica.num_starts += 1
    await scene.look()
    assert scene.routes.snapshot.replicas["small/0"].endpoint == scene.replica.endpoint


async def test_an_engine_that_hangs_is_restarted_after_its_time(scene: Scene) -> None:
    await scene.look(now_s=100.0)
    scene.replica.state = EngineState.UNRESPONSIVE
    await scene.look(now_s=101.0)
    await scene.look(now_s=100.0 + HANG_TIMEOUT_S)
    assert (scene.replica.num_restarts, scene.is_routed()) == (0, False)
    await scene.look(now_s=101.0 + HANG_TIMEOUT_S)
    assert (scene.replica.num_restarts, scene.is_routed()) == (1, True)


async def test_an_engine_that_answers_again_in_time_is_not_restarted(scene: Scene) -> None:
    await scene.look(now_s=100.0)
    for state, now_s in ((EngineState.UNRESPONSIVE, 101.0), (EngineState.READY, 102.0)):
        scene.replica.state = state
        await scene.look(now_s=now_s)
    scene.replica.state = EngineState.UNRESPONSIVE
    await scene.look(now_s=101.0 + HANG_TIMEOUT_S)
    assert scene.replica.num_restarts == 0


async def test_an_actor_that_does_not_answer_suspends_its_replica_and_users_are_answered_on(scene: Scene) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    scene.replica.port = server.sockets[0].getsockname()[1]
    await scene.look()
    scene.replica.trouble = DeadlineExceeded("no answer")
    for _ in range(5):
        await scene.look()
    assert (scene.is_routed(), scene.is_member()) == (True, False)
    assert scene.replica.num_revivals == 0
    scene.replica.trouble = None
    await scene.look()
    assert (scene.is_routed(), scene.is_member()) == (True, True)
    server.close()


async def test_a_replica_of_which_neither_actor_nor_engine_can_be_reached_takes_no_traffic(scene: Scene) -> None:
    await scene.look()
    scene.replica.trouble = DeadlineExceeded("no answer")
    await scene.look()
    assert not scene.is_routed()
    assert not scene.is_member()


async def test_without_its_actor_a_replica_takes_no_traffic_and_gets_another(scene: Scene) -> None:
    await scene.look()
    scene.replica.trouble = EngineDown("the actor is gone")
    await scene.look()
    assert (scene.is_routed(), scene.is_member()) == (False, False)
    assert scene.replica.num_revivals == 1


async def test_an_engine_that_cannot_start_is_tried_less_and_less_often(scene: Scene) -> None:
    scene.replica.fail_start = EngineDown("no memory")
    tried = []
    for now_s in range(64):
        before = scene.replica.num_revivals
        await scene.look(float(now_s))
        if scene.replica.num_revivals > before:
            tried.append(now_s)
    assert tried == [0, 1, 3, 7, 15, 31, 63]


def test_patience_is_back_after_a_success_and_has_a_bound() -> None:
    patience = Patience()
    for _ in range(20):
        patience.failed(0.0)
    assert patience.not_before_s == 60.0
    patience.succeeded()
    patience.failed(0.0)
    assert patience.not_before_s == 1.0


async def test_leases_are_renewed_every_so_many_looks(scene: Scene) -> None:
    for _ in range(21):
        await scene.look()
    assert scene.replica.num_renewals == 1


async def test_a_gateway_serves_once_each_engine_has_a_replica(scene: Scene) -> None:
    broken = WatchedReplica("small/1")
    broken.fail_start = NotFound("no such model")
    monitor = Monitor((scene.watch, scene.watch_over(broken)))
    running = asyncio.create_task(monitor.run())
    await asyncio.wait_for(monitor.first_service(), 30)
    assert scene.is_routed()
    running.cancel()


async def test_a_gateway_does_not_start_where_every_replica_of_an_engine_fails(scene: Scene) -> None:
    other = WatchedReplica("large/0", "large")
    other.fail_start = NotFound("no such model")
    monitor = Monitor((scene.watch, scene.watch_over(other)))
    running = asyncio.create_task(monitor.run())
    with pytest.raises(NotFound, match="no such model"):
        await asyncio.wait_for(monitor.first_service(), 30)
    running.cancel()


async def test_a_replica_that_joins_at_its_second_try_is_enough_to_serve(scene: Scene) -> None:
    await scene.look()
    scene.watch._note_trouble(EngineDown("the first try"))
    scene.watch.has_served = False
    without_room = scene.watch_over(WatchedReplica("small/1"))
    waiting = asyncio.create_task(Monitor((scene.watch, without_room)).first_service())
    await asyncio.sleep(0)
    assert not waiting.done()
    await scene.watch._join(scene.replica.endpoint)
    await asyncio.wait_for(waiting, 30)
    assert scene.is_routed()


class DropsOneCancel(WatchedReplica):
    """As a call does that is cancelled in the moment in which it is answered."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.num_dropped = asyncio.Event(), 0

    async def status(self) -> ReplicaStatus:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.num_dropped += 1
            if self.num_dropped > 1:
                raise
        return await super().status()


@pytest.mark.timeout(30)
async def test_a_watch_that_drops_a_cancel_is_ended_all_the_same(scene: Scene) -> None:
    replica = DropsOneCancel()
    monitor = Monitor((scene.watch_over(replica),))
    running = asyncio.create_task(monitor.run())
    await replica.asked.wait()
    await monitor.remove(replica.name)
    assert replica.num_dropped >= 1
    running.cancel()
