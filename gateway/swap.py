"""What a rolling swap and one in place have in common: two generations, the probe of a new replica, and the flip."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engines.config import EngineConfig
from engines.export_probe import ExportRecord, check_export
from engines.replica import Replica
from engines.types import ProbePrompt
from gateway.generation import GenerationRow
from gateway.lineup import Lineup
from gateway.membership import Membership
from gateway.route import RouteTable
from gateway.steps import StepClock
from gateway.store import Store

_log = logging.getLogger(__name__)
START_MARGIN_S = 120.0
"""Over the engine's own limit: an actor, and room on the cluster."""
SMOKE = ProbePrompt("hello", "hello", None, 1)
"""What a model without a recorded probe is asked to score: its log-probability must be a finite number."""


@dataclass(frozen=True, slots=True)
class Side:
    """A generation, and how its replicas are made."""

    row: GenerationRow
    config: EngineConfig

    def replica(self, number: int) -> str:
        return f"{self.row.name}/{number}"


@dataclass(frozen=True, slots=True)
class Ground:
    """What a release changes: the replicas, the rows, the routes, and who takes part in publishes."""

    lineup: Lineup
    store: Store
    routes: RouteTable
    membership: Membership


@contextmanager
def going_on(trouble: str) -> Iterator[None]:
    """Logs what is raised, and goes on: of several replicas that are put right, each is."""
    try:
        yield
    except Exception:
        _log.warning("%s", trouble, exc_info=True)


class Swap(ABC):
    """One release. `drain_timeout_s`: the longest that a completion may take."""

    def __init__(
        self,
        old: Side,
        new: Side,
        records: tuple[ExportRecord, ...],
        ground: Ground,
        clock: StepClock,
        drain_timeout_s: float,
    ) -> None:
        self._old = old
        self._new = new
        self._records = records
        self._ground = ground
        self._lineup = ground.lineup
        self._clock = clock
        self._drain_timeout_s = drain_timeout_s
        self.is_flipped = False

    @abstractmethod
    async def run(self) -> None:
        """Raises what ended it. If that was before the flip, nothing has changed then; after it, the release stands."""

    @abstractmethod
    async def _undo(self) -> None:
        """The old generation again, in all replicas. Raises nothing: one replica's trouble keeps no other one back."""

    @abstractmethod
    async def _finish(self) -> None:
        """The new generation in all replicas. Raises nothing."""

    async def _put_right(self) -> None:
        """After a failure, whose reason is what callers hear of."""
        await (self._finish() if self.is_flipped else self._undo())

    async def _keep(self, side: Side) -> None:
        """All replicas of a generation are brought up by their watches."""
        for number in range(side.config.replicas):
            with going_on(f"{side.replica(number)} is not kept"):
                await self._lineup.add(side.row, number)

    async def _serve(self, side: Side, number: int) -> None:
        """Returns once the replica takes traffic."""
        await self._lineup.add(side.row, number)
        await self._lineup.wait_served(side.replica(number), side.config.start_timeout_s + START_MARGIN_S)

    async def _probe(self, replica: Replica) -> None:
        if not self._records:
            await replica.probe(self._new.row.base, (SMOKE,))
            return
        scores = await replica.probe(self._new.row.base, tuple(record.prompt() for record in self._records))
        check_export(self._records, scores)

    async def _flip_if_half(self, num_ready: int) -> None:
        if self.is_flipped or 2 * num_ready < self._new.config.replicas:
            return
        routes = self._ground.routes
        async with self._clock.step("flip"), self._ground.membership.changing:
            aliases = await asyncio.to_thread(self._ground.store.generations.flip, self._old.row, self._new.row)
            self.is_flipped = True
            for alias in aliases:
                if alias.name in routes.snapshot.aliases:  # another one is not in the configuration any more
                    routes.set_alias(alias)
