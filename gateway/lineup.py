"""The replicas that the gateway keeps, of which generation: each is watched and told from `add` to `remove`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engines.errors import DeadlineExceeded
from engines.replica import Replica
from engines.types import Endpoint
from gateway.board import ReplicaBoard
from gateway.generation import GenerationRow
from gateway.membership import Membership
from gateway.monitor import Monitor, Watch, first_of
from gateway.route import RouteTable
from gateway.telling import Teller

_log = logging.getLogger(__name__)


class KeptReplica(Replica, Protocol):
    """A replica that is ours to end."""

    async def end(self) -> None: ...

    async def swap(self) -> Endpoint: ...


MakeReplica = Callable[[GenerationRow, int], KeptReplica]
"""A replica of a generation, by its number. May ask Ray and the store, and block."""
WatchOver = Callable[[Replica], Watch]


@dataclass(frozen=True, slots=True)
class Kept:
    replica: KeptReplica
    watch: Watch


class Lineup:
    """Belongs to the event loop, as `monitor` and `teller` do, which it opens the replicas' names to."""

    def __init__(
        self,
        make: MakeReplica,
        watch_over: WatchOver,
        monitor: Monitor,
        teller: Teller,
        membership: Membership,
        routes: RouteTable,
        board: ReplicaBoard,
    ) -> None:
        self._make_blocking = make
        self._watch_over = watch_over
        self._monitor = monitor
        self._teller = teller
        self._membership = membership
        self._routes = routes
        self._board = board
        self._kept: dict[str, Kept] = {}

    def names_of(self, generation: str) -> tuple[str, ...]:
        """The replicas of one generation, in order."""
        found = [name for name, kept in self._kept.items() if kept.replica.engine == generation]
        return tuple(sorted(found, key=lambda name: int(name.rpartition("/")[2])))

    def replica(self, name: str) -> KeptReplica:
        return self._kept[name].replica

    async def make(self, row: GenerationRow, number: int) -> KeptReplica:
        """A handle that nobody watches."""
        return await asyncio.to_thread(self._make_blocking, row, number)

    async def open(self, row: GenerationRow, num_replicas: int) -> None:
        """All replicas of a generation."""
        for number in range(num_replicas):
            await self.add(row, number)

    async def add(self, row: GenerationRow, number: int) -> None:
        """It is brought up, and then takes traffic for its generation; `wait_served` waits for that."""
        name = f"{row.name}/{number}"
        if name not in self._kept:
            replica = await self.make(row, number)
            kept = self._kept[name] = Kept(replica, self._watch_over(replica))
            self._monitor.add(kept.watch)
            self._teller.add(replica)

    async def wait_served(self, name: str, timeout_s: float) -> None:
        """Raises the trouble of a replica that does not come up, or `DeadlineExceeded`."""
        try:
            async with asyncio.timeout(timeout_s):
                await first_of([self._kept[name].watch])
        except TimeoutError:
            raise DeadlineExceeded(f"replica {name} was not in service within {timeout_s:.0f} s") from None

    async def remove(self, name: str, drain_timeout_s: float) -> None:
        """No traffic, then its requests end, then its engine and its actor. Unknown is fine."""
        kept = self._kept.get(name)
        if kept is None:
            return
        try:
            await self.detach(name, drain_timeout_s)
        except DeadlineExceeded as error:
            _log.warning("%s; they are cut off", error.message)
        await kept.replica.end()

    async def detach(self, name: str, drain_timeout_s: float) -> None:
        """No traffic, then its requests end; its actor goes on, unwatched. Unknown is fine.

        Raises `DeadlineExceeded` if requests are on it still: nobody watches it then, and they go on.
        """
        kept = self._kept.pop(name, None)
        if kept is None:
            return
        await self._monitor.remove(name)  # else it would be routed to again
        self._teller.remove(name)
        self._membership.leave(kept.replica)
        try:
            await self._routes.idle(name, drain_timeout_s)
        finally:
            self._routes.forget_replica(name)
            self._board.forget(name)
