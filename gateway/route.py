"""The route table: what a client's `model` means right now, and which replica answers it.

A frozen snapshot that is replaced whole, so a reader on any thread sees one moment. Changes and holds belong to the
event loop. A version stays held from the resolution of a request to the end of its answer: what is drained is unused.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from engines.errors import DeadlineExceeded, NotFound, Unavailable
from engines.types import Endpoint, VersionName
from gateway.types import AliasRow


@dataclass(frozen=True, slots=True)
class ReplicaRoute:
    """A place that answers for an engine; `name` is `engine/N`."""

    name: str
    engine: str
    endpoint: Endpoint
    ready: bool


@dataclass(frozen=True, slots=True)
class Target:
    """Where one request goes. `alias` is what the client asked for, without `@N`."""

    alias: str
    version: VersionName
    replica: ReplicaRoute


@dataclass(frozen=True, slots=True)
class Routes:
    """One moment of the table."""

    aliases: Mapping[str, AliasRow] = field(default_factory=dict)
    replicas: Mapping[str, ReplicaRoute] = field(default_factory=dict)

    def versions(self) -> dict[VersionName, str]:
        """Every version that can be named, with its engine: the bare bases, and what aliases call live or previous."""
        found = {VersionName(row.engine, 0): row.engine for row in self.aliases.values()}
        found |= {VersionName(replica.engine, 0): replica.engine for replica in self.replicas.values()}
        for row in self.aliases.values():
            found |= {name: row.engine for name in (row.live, row.previous) if name is not None}
        return found


class RouteTable:
    def __init__(self) -> None:
        self.snapshot = Routes()
        self._held: Counter[VersionName] = Counter()
        self._load: Counter[str] = Counter()
        self._waiting: dict[VersionName, list[asyncio.Future[None]]] = {}

    def set_alias(self, row: AliasRow) -> None:
        """From the next request on, the alias means what `row` says."""
        self.snapshot = replace(self.snapshot, aliases={**self.snapshot.aliases, row.name: row})

    def set_replica(self, replica: ReplicaRoute) -> None:
        self.snapshot = replace(self.snapshot, replicas={**self.snapshot.replicas, replica.name: replica})

    def withdraw(self, replica_name: str) -> None:
        """No new request goes to the replica; those it has go on."""
        known = self.snapshot.replicas.get(replica_name)
        if known is not None:
            self.set_replica(replace(known, ready=False))

    def named_versions(self) -> frozenset[VersionName]:
        """What an alias calls live or previous."""
        rows = self.snapshot.aliases.values()
        return frozenset(name for row in rows for name in (row.live, row.previous) if name is not None)

    def is_ready(self) -> bool:
        """Whether at least one replica can answer."""
        return any(replica.ready for replica in self.snapshot.replicas.values())

    def resolve(self, model: str) -> Target:
        """`model` is an alias, `alias@N` or `engine@0`. Raises `NotFound`, or `Unavailable` if no replica is ready."""
        routes = self.snapshot
        row = routes.aliases.get(model)
        if row is not None:
            return Target(row.name, row.live, self._pick(routes, row.engine))
        versions = routes.versions()
        name = next((name for name in versions if str(name) == model), None)
        if name is None:
            known = ", ".join(sorted([*routes.aliases, *map(str, versions)])) or "none"
            raise NotFound(f"No model '{model[:80]}'; there are: {known}", param="model")
        return Target(name.alias, name, self._pick(routes, versions[name]))

    @contextmanager
    def hold(self, target: Target) -> Iterator[None]:
        """Counts one request on the target. Call it in the same turn of the loop as `resolve`."""
        self._held[target.version] += 1
        self._load[target.replica.name] += 1
        try:
            yield
        finally:
            self._load[target.replica.name] -= 1
            self._held[target.version] -= 1
            if self._held[target.version] == 0:
                self._release(target.version)

    def num_held(self, version: VersionName) -> int:
        return self._held[version]

    async def drained(self, version: VersionName, timeout_s: float) -> None:
        """Returns once no request is on `version`; raises `DeadlineExceeded` if some still are after `timeout_s`."""
        if self._held[version] == 0:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(version, []).append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self._held[version]} requests are still on {version} after {timeout_s:g} s; it stays loaded for them"
            ) from None

    def _pick(self, routes: Routes, engine: str) -> ReplicaRoute:
        ready = [replica for replica in routes.replicas.values() if replica.ready and replica.engine == engine]
        if not ready:
            raise Unavailable(f"No replica of engine '{engine}' is ready; retry in a moment, or look at /readyz.")
        return min(ready, key=lambda replica: self._load[replica.name])

    def _release(self, version: VersionName) -> None:
        del self._held[version]
        for waiter in self._waiting.pop(version, []):
            if not waiter.done():
                waiter.set_result(None)
