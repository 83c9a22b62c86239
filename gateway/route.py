"""The route table: what a client's `model` means right now, and which replica answers it.

A frozen snapshot that is replaced whole, so a reader on any thread sees one moment. Changes and holds belong to the
event loop. A version stays held from the resolution of a request to the end of its answer: what is drained is unused.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from engines.errors import DeadlineExceeded, NotFound, Unavailable
from engines.types import Endpoint, VersionName
from gateway.ejection import Ejection
from gateway.types import AliasRow

_MAX_WAITING = 1024


@dataclass(frozen=True, slots=True)
class ReplicaRoute:
    """A place that answers for an engine; `name` is `engine/N`, `versions` the adapters that it holds."""

    name: str
    engine: str
    endpoint: Endpoint
    ready: bool
    versions: frozenset[VersionName] = frozenset()

    def holds(self, version: VersionName) -> bool:
        """Its bare base goes without saying."""
        return version in self.versions or version == VersionName(self.engine, 0)


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


class Hold:
    """One request's place in the table: its version, the replica that works for it, and since when."""

    def __init__(self, table: RouteTable, target: Target) -> None:
        self._table = table
        self._begin(target)

    def move(self, target: Target) -> None:
        """The request is on another replica from now on, and still on its version."""
        self.end()
        self._begin(target)

    def fail(self, *, unreachable: bool = False) -> bool:
        """The replica failed on the request; whether it is ejected for it."""
        return self._table.note_failure(self.target.replica, self.asked_s, unreachable=unreachable)

    def succeed(self) -> None:
        """The replica answered as it should."""
        self._table.note_success(self.target.replica, self.asked_s)

    def elapsed_s(self) -> float:
        """Since the replica was asked."""
        return self._table.now_s() - self.asked_s

    def end(self) -> None:
        self._table.add_load(self.target.replica.name, -1)

    def _begin(self, target: Target) -> None:
        self.target = target
        self.asked_s = self._table.now_s()
        self._table.add_load(target.replica.name, 1)


class RouteTable:
    """`clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.snapshot = Routes()
        self._clock = clock
        self._ejection = Ejection()
        self._held: Counter[VersionName] = Counter()
        self._load: Counter[str] = Counter()
        self._turn_of: dict[str, int] = {}
        self._turns = itertools.count(1)
        self._waiting: dict[VersionName, list[asyncio.Future[None]]] = {}
        self._closed: dict[str, asyncio.Event] = {}
        self._num_waiting = 0
        self._idling: dict[str, list[asyncio.Future[None]]] = {}

    def set_alias(self, row: AliasRow) -> None:
        """From the next request on, the alias means what `row` says."""
        self.snapshot = replace(self.snapshot, aliases={**self.snapshot.aliases, row.name: row})

    def set_replica(self, replica: ReplicaRoute) -> None:
        """What a replica is from now on. Another endpoint is another process: its failures are not held against it."""
        known = self.snapshot.replicas.get(replica.name)
        if known is not None and known.endpoint != replica.endpoint:
            self._ejection.forget(replica.name)
        self.snapshot = replace(self.snapshot, replicas={**self.snapshot.replicas, replica.name: replica})

    def withdraw(self, replica_name: str) -> None:
        """No new request goes to the replica; those it has go on."""
        known = self.snapshot.replicas.get(replica_name)
        if known is not None:
            self.set_replica(replace(known, ready=False))

    def forget_replica(self, replica_name: str) -> None:
        """The replica is gone, and its name stands for nothing."""
        left = {name: replica for name, replica in self.snapshot.replicas.items() if name != replica_name}
        self.snapshot = replace(self.snapshot, replicas=left)
        self._ejection.forget(replica_name)
        self._turn_of.pop(replica_name, None)

    def add_version(self, replica_name: str, version: VersionName) -> None:
        """Requests for `version` may go to the replica. A replica that is not known stays so."""
        known = self.snapshot.replicas.get(replica_name)
        if known is not None:
            self.set_replica(replace(known, versions=known.versions | {version}))

    def remove_version(self, replica_name: str, version: VersionName) -> None:
        """No new request for `version` goes to the replica; those it has go on."""
        known = self.snapshot.replicas.get(replica_name)
        if known is not None:
            self.set_replica(replace(known, versions=known.versions - {version}))

    def named_versions(self) -> frozenset[VersionName]:
        """What an alias calls live or previous."""
        rows = self.snapshot.aliases.values()
        return frozenset(name for row in rows for name in (row.live, row.previous) if name is not None)

    def in_service(self, engine: str) -> frozenset[str]:
        """Names of the replicas that take requests for an engine."""
        return frozenset(one.name for one in self.snapshot.replicas.values() if one.ready and one.engine == engine)

    def close(self, engine: str) -> None:
        """Requests for the engine's aliases wait in `wait_open`, until `reopen`."""
        self._closed.setdefault(engine, asyncio.Event())

    def reopen(self, engine: str) -> None:
        """Twice is fine."""
        event = self._closed.pop(engine, None)
        if event is not None:
            event.set()

    async def wait_open(self, model: str, timeout_s: float) -> None:
        """Returns once the engine that `model` is an alias over is open, which it nearly always is.

        Raises `Unavailable` after `timeout_s`, or if too many wait already.
        """
        row = self.snapshot.aliases.get(model)
        event = self._closed.get(row.engine) if row is not None else None
        if event is None:
            return
        if self._num_waiting >= _MAX_WAITING:
            raise Unavailable(f"{_MAX_WAITING} requests wait for '{model}' already; retry in a moment.")
        self._num_waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            raise Unavailable(f"'{model}' was not served again in time; retry in a moment.") from None
        finally:
            self._num_waiting -= 1

    def is_ready(self) -> bool:
        """Whether at least one replica can answer."""
        return any(replica.ready for replica in self.snapshot.replicas.values())

    def resolve(self, model: str) -> Target:
        """`model` is an alias, `alias@N` or `engine@0`; the replica is the least loaded that is ready and holds it.

        Raises `NotFound`, or `Unavailable` if there is no such replica.
        """
        routes = self.snapshot
        row = routes.aliases.get(model)
        if row is not None:
            return Target(row.name, row.live, self._pick(row.engine, row.live))
        versions = routes.versions()
        name = next((name for name in versions if str(name) == model), None)
        if name is None:
            known = ", ".join(sorted([*routes.aliases, *map(str, versions)])) or "none"
            raise NotFound(f"No model '{model[:80]}'; there are: {known}", param="model")
        return Target(name.alias, name, self._pick(versions[name], name))

    def elsewhere(self, target: Target, avoid: frozenset[str]) -> Target:
        """The same version on a replica that is not in `avoid`, whatever its alias names meanwhile; `Unavailable`."""
        return replace(target, replica=self._pick(target.replica.engine, target.version, avoid))

    @contextmanager
    def hold(self, target: Target) -> Iterator[Hold]:
        """Counts one request on the target. Call it in the same turn of the loop as `resolve`."""
        self._held[target.version] += 1
        hold = Hold(self, target)
        try:
            yield hold
        finally:
            hold.end()
            self._held[target.version] -= 1
            if self._held[target.version] == 0:
                self._release(target.version)

    def now_s(self) -> float:
        return self._clock()

    def add_load(self, replica_name: str, num: int) -> None:
        self._load[replica_name] += num
        if num > 0:
            self._turn_of[replica_name] = next(self._turns)
        if self._load[replica_name] == 0:
            del self._load[replica_name]
            _wake(self._idling.pop(replica_name, []))

    def load_of(self, replica_name: str) -> int:
        """Requests that the gateway has on the replica."""
        return self._load[replica_name]

    def note_failure(self, replica: ReplicaRoute, asked_s: float, *, unreachable: bool = False) -> bool:
        """A request that was sent at `asked_s` failed there; whether the replica is ejected for it."""
        if not self._is_current(replica):
            return False
        return self._ejection.fail(replica.name, asked_s, self._clock(), unreachable=unreachable)

    def note_success(self, replica: ReplicaRoute, asked_s: float) -> None:
        if self._is_current(replica):
            self._ejection.succeed(replica.name, asked_s)

    def ejected_for_s(self, replica_name: str, now_s: float) -> float:
        """How long no request goes to the replica after failures; 0: it is not ejected."""
        return self._ejection.ejected_for_s(replica_name, now_s)

    def held_versions(self) -> tuple[VersionName, ...]:
        """What requests are on right now."""
        return tuple(self._held)

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

    async def idle(self, replica_name: str, timeout_s: float) -> None:
        """Returns once no request is on the replica; raises `DeadlineExceeded` if some still are after `timeout_s`."""
        if self._load[replica_name] == 0:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idling.setdefault(replica_name, []).append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self._load[replica_name]} requests are still on {replica_name} after {timeout_s:g} s"
            ) from None

    def _pick(self, engine: str, version: VersionName, avoid: frozenset[str] = frozenset()) -> ReplicaRoute:
        ready = [replica for replica in self.snapshot.replicas.values() if replica.ready and replica.engine == engine]
        if not ready:
            raise Unavailable(f"No replica of engine '{engine}' is ready; retry in a moment, or look at /readyz.")
        holders = {replica.name: replica for replica in ready if replica.holds(version) and replica.name not in avoid}
        if not holders:
            raise Unavailable(f"No replica that is ready holds {version}; retry in a moment, or look at /v1/replicas.")
        usable = self._ejection.usable(holders, self._clock())
        return min((holders[name] for name in usable), key=self._busyness)

    def _busyness(self, replica: ReplicaRoute) -> tuple[int, int, str]:
        """Among equally loaded ones it is the turn of whoever waits longest for a request."""
        return self._load[replica.name], self._turn_of.get(replica.name, 0), replica.name

    def _is_current(self, replica: ReplicaRoute) -> bool:
        """Whether the name still stands for that process."""
        known = self.snapshot.replicas.get(replica.name)
        return known is not None and known.endpoint == replica.endpoint

    def _release(self, version: VersionName) -> None:
        del self._held[version]
        _wake(self._waiting.pop(version, []))


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
