"""Which replicas stand behind the aliases.

A replica that starts, restarts or comes back is no member until it holds every version that an alias names, and then
takes traffic. A publish is made on the members. Joining and publishing exclude each other (`changing`), so a replica
never joins with the versions of a moment ago.

A member whose actor cannot be reached is suspended: its engine answers users on, for the versions that it holds, but no
publish waits for it. One whose engine is not ready leaves: it takes no traffic.
"""

from __future__ import annotations

import asyncio
import logging

from engines.adapter import WEIGHTS_FILE, pack
from engines.errors import EngineFault, NotFound, Unavailable
from engines.fleet import Fleet
from engines.ledger import SERVING
from engines.replica import Replica
from engines.types import Endpoint, VersionName
from gateway.route import ReplicaRoute, RouteTable
from gateway.store import Store

_log = logging.getLogger(__name__)
LEASE_TTL_S = 120.0


class Membership:
    """Belongs to the event loop."""

    def __init__(self, store: Store, routes: RouteTable) -> None:
        self._store = store
        self._routes = routes
        self._members: dict[str, Replica] = {}
        self.changing = asyncio.Lock()
        """Held while a replica joins, and from a publish's first load to its flip."""

    def is_member(self, replica: Replica) -> bool:
        return replica.name in self._members

    def fleet(self, engine: str) -> Fleet:
        """The members of one engine. Raises `Unavailable` if there is none."""
        members = tuple(self._members[name] for name in sorted(self._members) if self._members[name].engine == engine)
        if not members:
            raise Unavailable(f"no replica of engine '{engine}' is in service: look at `tandem status`")
        return Fleet(members, SERVING, LEASE_TTL_S)

    async def join(self, replica: Replica, endpoint: Endpoint) -> None:
        """Drops what nothing names, loads what aliases name, then routes to the replica."""
        async with self.changing:
            named = await self._named(replica.engine)
            await replica.keep_only(SERVING, self._kept(named))  # first: what is left over may hold the slots needed
            for version in named:
                await self._bring(replica, version)
            self._routes.set_replica(
                ReplicaRoute(replica.name, replica.engine, endpoint, ready=True, versions=frozenset(named))
            )
            self._members[replica.name] = replica
        _log.info("replica %s is in service with %s", replica.name, ", ".join(map(str, named)) or "its base")

    def suspend(self, replica: Replica) -> bool:
        """No publish counts on it; its traffic goes on. False if it was no member."""
        return self._members.pop(replica.name, None) is not None

    def leave(self, replica: Replica) -> bool:
        """No traffic and no publish. False if it was not routed to."""
        self._members.pop(replica.name, None)
        route = self._routes.snapshot.replicas.get(replica.name)
        self._routes.withdraw(replica.name)
        return route is not None and route.ready

    async def tend(self, replica: Replica) -> None:
        """Drops what nothing names and nobody uses, renews a member's leases, and loads what it lost."""
        async with self.changing:
            if not self.is_member(replica):
                return
            named = await self._named(replica.engine)
            kept = self._kept(named)
            await replica.keep_only(SERVING, kept)
            held = self._routed(replica)
            for version in held.difference(kept):
                self._routes.remove_version(replica.name, version)
            try:
                # What is in use is renewed too: an expired lease is a slot that the next load may take.
                await replica.renew(SERVING, [version for version in kept if version in held], LEASE_TTL_S)
            except NotFound:
                for version in named:
                    await self._bring(replica, version)

    async def _bring(self, replica: Replica, version: VersionName) -> None:
        row = await asyncio.to_thread(self._store.versions.get, version)
        parcel = await asyncio.to_thread(pack, version, row.path)
        if parcel.sha256_of(WEIGHTS_FILE) != row.weights_sha256:
            raise EngineFault(f"the files of {version} in {row.path} are not those that were registered: restore them")
        await replica.copy(parcel)
        loaded = await replica.load(SERVING, version, LEASE_TTL_S)
        if loaded.sha256 != row.weights_sha256:
            raise EngineFault(f"replica {replica.name} read other weights for {version} than the registry holds")
        self._routes.add_version(replica.name, version)

    async def _named(self, engine: str) -> tuple[VersionName, ...]:
        """From the database, which knows of a flip that this process has not seen; of the configured aliases only."""
        configured = self._routes.snapshot.aliases
        rows = [row for row in await asyncio.to_thread(self._store.aliases.all) if row.name in configured]
        names = {name for row in rows if row.engine == engine for name in (row.live, row.previous) if name is not None}
        return tuple(sorted(name for name in names if not name.is_base))

    def _routed(self, replica: Replica) -> frozenset[VersionName]:
        route = self._routes.snapshot.replicas.get(replica.name)
        return route.versions if route is not None else frozenset()

    def _kept(self, named: tuple[VersionName, ...]) -> tuple[VersionName, ...]:
        """With what requests are on still: what drains is dropped by a later look."""
        in_use = (version for version in self._routes.held_versions() if not version.is_base and version not in named)
        return (*named, *in_use)
