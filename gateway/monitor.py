"""Keeps the route table true: a replica takes traffic only while its engine is ready and holds every named version."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from engines.actor import ReplicaStatus
from engines.errors import NotFound, TandemError
from engines.types import EngineState
from gateway.metrics import Metrics
from gateway.promotion import Publisher
from gateway.replicas import RayReplica
from gateway.route import Replica as Route
from gateway.route import RouteTable

_log = logging.getLogger(__name__)
_PERIOD_S = 1.0
_RENEW_EVERY = 20


class Monitor:
    """Looks at every replica once a second; restarts a failed engine, and renews the leases of what is named."""

    def __init__(
        self, replicas: Sequence[RayReplica], routes: RouteTable, publisher: Publisher, metrics: Metrics
    ) -> None:
        self._replicas = tuple(replicas)
        self._routes = routes
        self._publisher = publisher
        self._metrics = metrics

    async def admit(self, replica: RayReplica) -> None:
        """Starts the engine if need be, loads every version that an alias names, and only then routes to it."""
        endpoint = await replica.start()
        await self._publisher.restage(replica)
        self._routes.set_replica(Route(replica.name, replica.engine, endpoint, ready=True))
        self._metrics.replica_up.labels(replica.name).set(1)
        _log.info("replica %s is ready", replica.name)

    async def run(self) -> None:
        """Until cancelled. One replica's trouble is logged and tried again; it never ends the watch of the others."""
        tick = 0
        while True:
            await asyncio.sleep(_PERIOD_S)
            tick += 1
            await asyncio.gather(*(self._look(r, renew=tick % _RENEW_EVERY == 0) for r in self._replicas))

    async def _look(self, replica: RayReplica, *, renew: bool) -> None:
        try:
            status = await replica.status()
            if status.health.is_ready and status.stats is not None:
                self._metrics.queue_depth.labels(replica.name).set(status.stats.num_waiting)
                if renew:
                    await self._renew(replica)
                return
            self._withdraw(replica, status)
            if status.health.state is EngineState.FAILED:
                await self.admit(replica)
        except TandemError as error:
            _log.warning("replica %s: %s", replica.name, error.message)
            self._withdraw(replica, None)
            replica.revive()

    async def _renew(self, replica: RayReplica) -> None:
        names = [n for n in self._routes.named_versions() if not n.is_base]
        try:
            await replica.renew(names)
        except NotFound:
            await self._publisher.restage(replica)

    def _withdraw(self, replica: RayReplica, status: ReplicaStatus | None) -> None:
        self._routes.withdraw(replica.name)
        self._metrics.replica_up.labels(replica.name).set(0)
        if status is not None:
            _log.warning("replica %s is %s: %s", replica.name, status.health.state, status.health.detail)
