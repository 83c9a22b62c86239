"""The replicas that the gateway keeps, of which generation: each is watched and told from `add` to `remove`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engines.config import EngineConfig
from engines.errors import DeadlineExceeded
from engines.replica import Replica
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


MakeReplica = Callable[[str, int, EngineConfig], KeptReplica]
"""From a generation's name, the replica's number and its configuration. May ask Ray, and block."""
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
        self._make = make
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

    async def open(self, row: GenerationRow, config: EngineConfig) -> None:
        """All replicas of a generation."""
        for number in range(config.replicas):
            await self.add(row, number, config)

    async def add(self, row: GenerationRow, number: int, config: EngineConfig) -> KeptReplica:
        """It is brought up, and then takes traffic for its generation; `wait_served` waits for that."""
        name = f"{row.name}/{number}"
        if name not in self._kept:
            replica = await asyncio.to_thread(self._make, row.name, number, config)
            kept = self._kept[name] = Kept(replica, self._watch_over(replica))
            self._monitor.add(kept.watch)
            self._teller.add(replica)
        return self._kept[name].replica

    async def wait_served(self, name: str, timeout_s: float) -> None:
        """Raises the trouble of a replica that does not come up, or `DeadlineExceeded`."""
        try:
            async with asyncio.timeout(timeout_s):
                await first_of([self._kept[name].watch])
        except TimeoutError:
            raise DeadlineExceeded(f"replica {name} was not in service within {timeout_s:.0f} s") from None

    async def remove(self, name: str, drain_timeout_s: float) -> None:
        """No traffic, then its requests end, then its engine and its actor. Unknown is fine."""
        kept = self._kept.pop(name, None)
        if kept is None:
            return
        await self._monitor.remove(name)  # else it would be routed to again
        self._membership.leave(kept.replica)
        try:
            await self._routes.idle(name, drain_timeout_s)
        except DeadlineExceeded as error:
            _log.warning("%s; they are cut off", error.message)
        self._teller.remove(name)
        await kept.replica.end()
        self._routes.forget_replica(name)
        self._board.forget(name)

    async def remove_all(self, names: Sequence[str], drain_timeout_s: float) -> None:
        for name in names:
            await self.remove(name, drain_timeout_s)
