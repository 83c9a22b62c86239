"""Keeps the route table true: a replica takes traffic only while its engine is ready and holds every named version.

Each replica has a watch of its own, so that one engine's start delays no other's. The watch is driven by what it sees,
not by what happened: an engine that is ready and not routed is admitted, whatever took it out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from engines.errors import NotFound, TandemError
from engines.types import EngineState
from gateway.metrics import Metrics
from gateway.promotion import Publisher
from gateway.replicas import Replica
from gateway.route import ReplicaRoute, RouteTable

_log = logging.getLogger(__name__)
_PERIOD_S = 1.0
_RENEW_EVERY = 20
_MAX_MISSES = 3
_MAY_START = frozenset({EngineState.NEW, EngineState.STOPPED, EngineState.FAILED})


class Monitor:
    """Looks at every replica once a second; starts what is down, and renews the leases of what is named."""

    def __init__(self, replicas: Sequence[Replica], routes: RouteTable, publisher: Publisher, metrics: Metrics) -> None:
        self._replicas = tuple(replicas)
        self._routes = routes
        self._publisher = publisher
        self._metrics = metrics
        self._misses: dict[str, int] = {}

    async def admit(self, replica: Replica) -> None:
        """Starts the engine if need be, loads every version that an alias names, and only then routes to it."""
        endpoint = await replica.start()
        await self._publisher.restage(replica)
        self._routes.set_replica(ReplicaRoute(replica.name, replica.engine, endpoint, ready=True))
        _log.info("replica %s is ready", replica.name)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as watches:
            for replica in self._replicas:
                watches.create_task(self._watch(replica))

    async def _watch(self, replica: Replica) -> None:
        tick = 0
        while True:
            await asyncio.sleep(_PERIOD_S)
            tick += 1
            try:
                await self.look(replica, renew=tick % _RENEW_EVERY == 0)
            except Exception as error:  # one replica's trouble, of whatever kind, never ends the watch
                await self._miss(replica, error)

    async def look(self, replica: Replica, *, renew: bool = False) -> None:
        """One look: renew, admit or withdraw. Raises what the replica raises."""
        status = await replica.status()
        self._misses[replica.name] = 0
        if status.stats is not None:
            self._metrics.queue_depth.labels(replica.name).set(status.stats.num_waiting)
        if not status.health.is_ready:
            self._withdraw(replica, f"{status.health.state}: {status.health.detail}")
        if status.health.state in _MAY_START or (status.health.is_ready and not self._is_routed(replica)):
            await self.admit(replica)
        elif status.health.is_ready and renew:
            await self._renew(replica)

    async def _miss(self, replica: Replica, error: Exception) -> None:
        """A call that failed says little of the engine, which answers users by itself; several in a row do."""
        misses = self._misses[replica.name] = self._misses.get(replica.name, 0) + 1
        said = error.detail if isinstance(error, TandemError) else ""
        _log.warning("replica %s: %s\n%s", replica.name, error, said, exc_info=not isinstance(error, TandemError))
        if misses >= _MAX_MISSES:
            self._withdraw(replica, f"{misses} looks at it failed")
            await replica.revive()

    async def _renew(self, replica: Replica) -> None:
        try:
            await replica.renew(self._publisher.adapters_of(replica.engine))
        except NotFound:
            await self._publisher.restage(replica)

    def _is_routed(self, replica: Replica) -> bool:
        route = self._routes.snapshot.replicas.get(replica.name)
        return route is not None and route.ready

    def _withdraw(self, replica: Replica, why: str) -> None:
        if self._is_routed(replica):
            _log.warning("replica %s takes no traffic: %s", replica.name, why)
        self._routes.withdraw(replica.name)
