"""A rolling swap: an engine's replicas go from one generation to the next while users are answered.

    for each replica:  start the new one -> probe it -> (flip) -> drain the old one, which then goes

So there is room needed for one replica more than the engine has. The flip comes once half of the new replicas, or more,
have proved themselves: one transaction lets every alias of the engine name the new base. Before it no client can tell
that anything is tried, and a failure undoes everything; after it the release stands, and what fails is brought up by
the watch that every replica has.
"""

from __future__ import annotations

import asyncio
import logging
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
_START_MARGIN_S = 120.0
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


class RollingSwap:
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

    async def run(self) -> None:
        """Raises what ended it: before the flip nothing is changed then, after it all old replicas are gone too."""
        num_replicas = self._new.config.replicas
        try:
            for number in range(num_replicas):
                await self._bring_up(number)
                if not self.is_flipped and 2 * (number + 1) >= num_replicas:
                    await self._flip()
                await self._end_old(self._old.replica(number))
        except Exception:
            await (self._finish() if self.is_flipped else self._undo())
            raise
        await self._finish()  # an engine that had more replicas before

    async def _bring_up(self, number: int) -> None:
        name = self._new.replica(number)
        async with self._clock.step("start", name):
            replica = await self._lineup.add(self._new.row, number, self._new.config)
            await self._lineup.wait_served(name, self._new.config.start_timeout_s + _START_MARGIN_S)
        async with self._clock.step("probe", name):
            await self._probe(replica)

    async def _probe(self, replica: Replica) -> None:
        if not self._records:
            await replica.probe(self._new.row.base, (SMOKE,))
            return
        scores = await replica.probe(self._new.row.base, tuple(record.prompt() for record in self._records))
        check_export(self._records, scores)

    async def _flip(self) -> None:
        routes = self._ground.routes
        async with self._clock.step("flip"), self._ground.membership.changing:
            aliases = await asyncio.to_thread(self._ground.store.generations.flip, self._old.row, self._new.row)
            self.is_flipped = True
            for alias in aliases:
                if alias.name in routes.snapshot.aliases:  # another one is not in the configuration any more
                    routes.set_alias(alias)

    async def _end_old(self, name: str) -> None:
        async with self._clock.step("drain", name):
            await self._lineup.remove(name, self._drain_timeout_s)

    async def _undo(self) -> None:
        """The old ones that went come back by their watch; no alias has named the new ones."""
        for number in range(self._old.config.replicas):
            await self._lineup.add(self._old.row, number, self._old.config)
        await self._lineup.remove_all(self._lineup.names_of(self._new.row.name), self._drain_timeout_s)

    async def _finish(self) -> None:
        for name in self._lineup.names_of(self._old.row.name):
            await self._end_old(name)
        for number in range(self._new.config.replicas):
            await self._lineup.add(self._new.row, number, self._new.config)
