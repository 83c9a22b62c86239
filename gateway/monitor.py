"""Keeps replicas in service: looks at each once a second, starts what is down, and tends what serves.

Each replica has a watch of its own, so that one engine's start delays no other's. The watch is driven by what it sees,
not by what happened: an engine that is ready and no member joins, whatever took it out.

    ready         -> a member, or it joins
    unresponsive  -> no traffic; restarted if it stays so for `hang_timeout_s`
    new, stopped, failed -> no traffic; started, after a pause that doubles with each failure
    its actor is gone -> no traffic; another actor is made
    its actor does not answer -> suspended: users are answered on, publishes go without it; if its engine does not
        listen any more either, no traffic
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from engines.actor import ReplicaStatus
from engines.errors import DeadlineExceeded, EngineDown, TandemError
from engines.replica import Replica
from engines.types import Endpoint, EngineHealth, EngineState
from gateway.board import ReplicaBoard
from gateway.membership import Membership
from gateway.metrics import Metrics
from gateway.route import RouteTable

_log = logging.getLogger(__name__)
_PERIOD_S = 1.0
_TEND_EVERY = 20
_MAX_PAUSE_S = 60.0
_CONNECT_TIMEOUT_S = 2.0
_MAY_START = frozenset({EngineState.NEW, EngineState.STOPPED, EngineState.FAILED})


@dataclass(slots=True)
class Patience:
    """How long to wait before an engine that failed to start is tried again: 1 s, doubled up to a minute."""

    num_failures: int = 0
    not_before_s: float = 0.0

    def failed(self, now_s: float) -> None:
        self.not_before_s = now_s + min(2.0**self.num_failures, _MAX_PAUSE_S)
        self.num_failures += 1

    def succeeded(self) -> None:
        self.num_failures, self.not_before_s = 0, 0.0


class Watch:
    """The watch over one replica."""

    def __init__(
        self,
        replica: Replica,
        routes: RouteTable,
        membership: Membership,
        board: ReplicaBoard,
        metrics: Metrics,
        hang_timeout_s: float,
    ) -> None:
        self.replica = replica
        self._routes = routes
        self._membership = membership
        self._board = board
        self._metrics = metrics
        self._hang_timeout_s = hang_timeout_s
        self._patience = Patience()
        self._hanging_since_s: float | None = None
        self._num_looks = 0
        self._said = ""
        self.news = asyncio.Event()
        """Set when `has_served` or `trouble` changes."""
        self.has_served = False
        self.trouble: Exception | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look(asyncio.get_running_loop().time())
            except Exception as error:  # one replica's trouble, of whatever kind, never ends the watch
                await self._miss(error)
            await asyncio.sleep(_PERIOD_S)

    async def look(self, now_s: float) -> None:
        """One look. Raises what the replica raises."""
        status = await self.replica.status()
        self._board.saw(self.replica.name, self.replica.engine, status)
        state = status.health.state
        if status.stats is not None:
            self._metrics.queue_depth.labels(self.replica.name).set(status.stats.num_waiting)
        self._hanging_since_s = (self._hanging_since_s or now_s) if state is EngineState.UNRESPONSIVE else None
        is_other = status.engine not in ("", self.replica.engine)  # a swap in place that was broken off
        if status.health.is_ready and not is_other:
            await self._serve(status)
            return
        self._leave(f"it serves {status.engine}" if is_other else f"{state}: {status.health.detail}")
        if (state in _MAY_START or is_other) and now_s >= self._patience.not_before_s:
            await self._bring_up(status, self.replica.start, now_s)
        elif self._hanging_since_s is not None and now_s - self._hanging_since_s >= self._hang_timeout_s:
            _log.warning("replica %s has hung for %.0f s: restarting it", self.replica.name, self._hang_timeout_s)
            await self._bring_up(status, self.replica.restart, now_s)

    async def _serve(self, status: ReplicaStatus) -> None:
        self._num_looks += 1
        if status.endpoint is not None and not self._is_served_at(status.endpoint):
            await self._join(status.endpoint)
        elif self._num_looks % _TEND_EVERY == 0:
            await self._membership.tend(self.replica)

    def _is_served_at(self, endpoint: Endpoint) -> bool:
        """An engine that was started anew answers elsewhere, and holds nothing yet."""
        route = self._routes.snapshot.replicas.get(self.replica.name)
        is_routed = route is not None and route.ready and route.endpoint == endpoint
        return is_routed and self._membership.is_member(self.replica)

    async def _bring_up(self, status: ReplicaStatus, start: Callable[[], Awaitable[Endpoint]], now_s: float) -> None:
        starting = replace(status, health=EngineHealth(EngineState.STARTING))
        self._board.saw(self.replica.name, self.replica.engine, starting)
        try:
            endpoint = await start()
        except TandemError as error:
            self._patience.failed(now_s)
            self._note_trouble(error)
            raise
        self._patience.succeeded()
        self._hanging_since_s = None
        await self._join(endpoint)

    async def _join(self, endpoint: Endpoint) -> None:
        try:
            await self._membership.join(self.replica, endpoint)
        except TandemError as error:
            self._note_trouble(error)
            raise
        self.trouble = None
        self._said = ""
        self.has_served = True
        self.news.set()

    async def _miss(self, error: Exception) -> None:
        """A call that failed says little of the engine, which answers users by itself; without an actor it is dead."""
        if isinstance(error, EngineDown):
            self._leave(_words_of(error))
            error = await self._revive() or error
        elif not await self._suspend():
            error = await self._revive() or error  # which knows if Ray's head is gone
        if not isinstance(error, DeadlineExceeded | EngineDown):  # those may be over in a moment
            self._note_trouble(error)
        self._say(error)

    async def _suspend(self) -> bool:
        """False if its engine takes no connections either, so that nobody can be answered."""
        if self._membership.suspend(self.replica):
            _log.warning("replica %s is suspended: it answers users, and no publish waits for it", self.replica.name)
        route = self._routes.snapshot.replicas.get(self.replica.name)
        if route is not None and not await _listens(route.endpoint):
            self._leave("neither its actor nor its engine can be reached")
            return False
        return True

    async def _revive(self) -> Exception | None:
        try:
            await self.replica.revive()
        except Exception as error:  # Ray may be gone too, or the node with the GPUs: the next look tries again
            return error
        return None

    def _say(self, error: Exception) -> None:
        """To the board at each look, to the log when it changes."""
        why = _words_of(error)
        self._board.missed(self.replica.name, self.replica.engine, why)
        if why != self._said:
            detail = error.detail if isinstance(error, TandemError) else ""
            is_ours = isinstance(error, TandemError)
            _log.warning("replica %s: %s\n%s", self.replica.name, why, detail, exc_info=None if is_ours else error)
        self._said = why

    def _leave(self, why: str) -> None:
        if self._membership.leave(self.replica):
            _log.warning("replica %s takes no traffic: %s", self.replica.name, why)

    def _note_trouble(self, error: Exception) -> None:
        self.trouble = error
        self.news.set()


async def _listens(endpoint: Endpoint) -> bool:
    """False only where a connection is refused: what is slow may answer users all the same."""
    url = urlsplit(endpoint.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(url.hostname, port)
    except TimeoutError:
        return True
    except OSError:
        return False
    writer.close()
    return True


def _words_of(error: Exception) -> str:
    return error.message if isinstance(error, TandemError) else f"{type(error).__name__}: {error}"


class Monitor:
    """The watches over all replicas. One that is added is watched once `run` runs."""

    def __init__(self, watches: tuple[Watch, ...] = ()) -> None:
        self._watches = {watch.replica.name: watch for watch in watches}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for watch in self._watches.values():
                self._start(tasks, watch)
            await asyncio.Event().wait()  # others may be added

    def add(self, watch: Watch) -> None:
        self._watches[watch.replica.name] = watch
        if self._tasks is not None:
            self._start(self._tasks, watch)

    async def remove(self, name: str) -> None:
        """Returns once nobody looks at the replica any more. Unknown is fine."""
        self._watches.pop(name, None)
        task = self._running.pop(name, None)
        while task is not None and not task.done():
            task.cancel()  # once may be lost: asyncio.wait_for of Python 3.11 drops one that meets the answer
            await asyncio.wait((task,), timeout=_PERIOD_S)

    async def first_service(self) -> None:
        """Waits until each engine has a replica in service; raises the trouble of one whose replicas all failed."""
        by_engine: dict[str, list[Watch]] = {}
        for watch in self._watches.values():
            by_engine.setdefault(watch.replica.engine, []).append(watch)
        await asyncio.gather(*(first_of(watches) for watches in by_engine.values()))

    def _start(self, tasks: asyncio.TaskGroup, watch: Watch) -> None:
        self._running[watch.replica.name] = tasks.create_task(watch.run())


async def first_of(watches: list[Watch]) -> None:
    """Waits until one of them has been in service; raises the first one's trouble once all have some."""
    while not any(watch.has_served for watch in watches):
        troubles = [watch.trouble for watch in watches if watch.trouble is not None]
        if len(troubles) == len(watches):
            raise troubles[0]
        waiting = [asyncio.create_task(watch.news.wait()) for watch in watches]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        for watch in watches:
            watch.news.clear()
