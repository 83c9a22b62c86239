"""Publishing: verify -> stage -> probe -> flip -> drain -> retire.

Until the flip nothing that a client can see has changed, and a failure undoes what was staged; the flip is one database
transaction with a generation number; after it the old version drains and is unloaded. One publish at a time: a second
caller gets `Conflict`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from engines.adapter import VerifiedAdapter
from engines.errors import Conflict, DeadlineExceeded, Refused
from engines.types import VersionName
from gateway.metrics import Metrics
from gateway.proof import check_agreement, check_delivery
from gateway.registry import Registry
from gateway.replicas import Replica
from gateway.route import RouteTable
from gateway.store import StateChange
from gateway.types import AliasRow, PublishReport, StepTime, VersionRow, VersionState, check_transition

_log = logging.getLogger(__name__)
_ON_ITS_WAY = frozenset({VersionState.STAGED, VersionState.PROBED})


class StepClock:
    """Times the steps of one publish, for its answer and for `tandem_publish_seconds`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start_s = time.perf_counter()
        self.steps: list[StepTime] = []

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        start_s = time.perf_counter()
        yield
        seconds = time.perf_counter() - start_s
        self.steps.append(StepTime(name, round(seconds, 4)))
        self._metrics.publish_seconds.labels(name).observe(seconds)

    def elapsed_s(self) -> float:
        return round(time.perf_counter() - self._start_s, 4)


class Publisher:
    """Moves versions through their states, and aliases from version to version."""

    def __init__(
        self,
        registry: Registry,
        routes: RouteTable,
        replicas: Sequence[Replica],
        metrics: Metrics,
        drain_timeout_s: float,
    ) -> None:
        self._registry = registry
        self._store = registry.store
        self._routes = routes
        self._replicas = tuple(replicas)
        self._metrics = metrics
        self._drain_timeout_s = drain_timeout_s
        self._publishing = asyncio.Lock()

    async def register(self, alias: str, path: Path) -> VersionRow:
        """Copies a verified adapter into the registry, or raises `AdapterRefused` and changes nothing."""
        return await asyncio.to_thread(self._registry.register, alias, path)

    async def promote(self, alias: str, version: VersionName) -> PublishReport:
        """Makes `alias` name `version` on every replica, or changes nothing."""
        async with self._only_publisher():
            clock = StepClock(self._metrics)
            row = await asyncio.to_thread(self._store.aliases.get, alias)
            _check_target(row, version)
            try:
                proof = "the bare base" if version.is_base else await self._deliver(version, clock)
                report = await self._flip(row, version, row.live, VersionState.STANDBY, proof, clock)
            except BaseException as error:
                await asyncio.shield(self._undo(version, error))
                raise
            return await self._finish(report, row.previous, clock)

    async def rollback(self, alias: str) -> PublishReport:
        """One flip back to what the alias named before; the version left behind is drained and unloaded."""
        async with self._only_publisher():
            clock = StepClock(self._metrics)
            row = await asyncio.to_thread(self._store.aliases.get, alias)
            if row.previous is None:
                raise Conflict(f"'{alias}' has nothing to roll back to: it names {row.live}", param="alias")
            report = await self._flip(row, row.previous, None, VersionState.ROLLED_BACK, "kept loaded", clock)
            return await self._finish(report, row.live, clock)

    async def restage(self, replica: Replica) -> None:
        """Loads every version that an alias names: what a replica does before it receives traffic."""
        for row in await asyncio.to_thread(self._store.aliases.all):
            for name in (row.live, row.previous):
                if row.engine == replica.engine and name is not None and not name.is_base:
                    version = await asyncio.to_thread(self._store.versions.get, name)
                    await replica.stage(name, version.path)

    async def recover(self) -> None:
        """What a publisher that died left behind: a version on its way that nothing names may be tried again."""
        named = self._routes.named_versions()
        for row in await asyncio.to_thread(self._store.versions.list):
            if row.state in _ON_ITS_WAY and row.name not in named:
                await self._set_state(row.name, VersionState.VERIFIED, "the publish was interrupted")

    def adapters_of(self, engine: str) -> tuple[VersionName, ...]:
        """The adapters that aliases over `engine` name."""
        rows = self._routes.snapshot.aliases.values()
        names = {name for row in rows if row.engine == engine for name in (row.live, row.previous) if name is not None}
        return tuple(sorted(name for name in names if not name.is_base))

    async def _deliver(self, name: VersionName, clock: StepClock) -> str:
        async with clock.step("verify"):
            row = await asyncio.to_thread(self._store.versions.get, name)
            if row.state is not VersionState.STANDBY:
                check_transition(name, row.state, VersionState.STAGED)
            verified = await asyncio.to_thread(self._registry.reverify, row)
        replicas = [r for r in self._replicas if r.engine == row.engine]
        async with clock.step("stage"):
            delivery = await self._stage(row, verified, replicas)
        async with clock.step("probe"):
            return await self._probe(row, verified, replicas, delivery)

    async def _stage(self, row: VersionRow, verified: VerifiedAdapter, replicas: Sequence[Replica]) -> str:
        loaded = await asyncio.gather(*(r.stage(row.name, row.path) for r in replicas))
        profile = self._registry.base_of(row.engine).profile
        proofs = [check_delivery(one, row.weights_sha256, verified.modules, profile) for one in loaded]
        await self._advance(row, VersionState.STAGED)
        return proofs[0]

    async def _probe(
        self, row: VersionRow, verified: VerifiedAdapter, replicas: Sequence[Replica], delivery: str
    ) -> str:
        records = verified.manifest.probe if verified.manifest else ()
        prompts = [record.prompt() for record in records]
        base = VersionName(row.engine, 0)
        proof = delivery
        for replica in replicas if prompts else ():
            plain, tuned = await asyncio.gather(replica.probe(base, prompts), replica.probe(row.name, prompts))
            agreement = check_agreement(records, plain, tuned)
            if agreement.is_measurable:
                proof = (
                    f"differences of log-probabilities (effect {agreement.effect:.3f}, error {agreement.error:.4f}), "
                    f"{delivery}"
                )
        await self._advance(row, VersionState.PROBED)
        return proof

    async def _undo(self, name: VersionName, error: BaseException) -> None:
        """Reconciles with what the database says: an alias that names the version keeps it, else nothing is left."""
        for alias in await asyncio.to_thread(self._store.aliases.all):
            self._routes.set_alias(alias)
        if name.is_base or name in self._routes.named_versions():
            return
        await self._unload(name)
        row = await asyncio.to_thread(self._store.versions.get, name)
        if isinstance(error, Refused):
            await self._set_state(name, VersionState.REJECTED, error.message)
        elif row.state in _ON_ITS_WAY:
            await self._set_state(name, VersionState.VERIFIED, str(error))

    async def _flip(
        self,
        old: AliasRow,
        to: VersionName,
        previous: VersionName | None,
        left: VersionState,
        proof: str,
        clock: StepClock,
    ) -> PublishReport:
        async with clock.step("flip"):
            new = await asyncio.to_thread(
                self._store.aliases.flip,
                *(old.name, to, previous, old.generation, _state_changes(old, to, left)),
                action="promote" if left is VersionState.STANDBY else "rollback",
            )
            self._routes.set_alias(new)
        return PublishReport(new.name, to, previous, new.generation, clock.elapsed_s(), tuple(clock.steps), proof)

    async def _finish(self, report: PublishReport, left: VersionName | None, clock: StepClock) -> PublishReport:
        """Drains and unloads the version that nothing names any more."""
        if left is not None and left not in self._routes.named_versions() and not left.is_base:
            try:
                async with clock.step("drain"):
                    await self._routes.drained(left, self._drain_timeout_s)
                async with clock.step("retire"):
                    await self._unload(left)
            except DeadlineExceeded as error:  # the flip stands, and what is in use stays loaded until its lease ends
                _log.warning("%s", error.message)
        return replace(report, steps=tuple(clock.steps))

    async def _unload(self, name: VersionName) -> None:
        """On every replica that can; one that can't frees the slot when the lease, which nobody renews, has ended."""
        results = await asyncio.gather(*(r.unload(name) for r in self._replicas), return_exceptions=True)
        for replica, result in zip(self._replicas, results, strict=True):
            if isinstance(result, BaseException):
                _log.warning("%s is still loaded on %s: %s", name, replica.name, result)

    async def _advance(self, row: VersionRow, state: VersionState) -> None:
        """A standby is staged and probed already, and stays what it is until the flip."""
        if row.state is not VersionState.STANDBY:
            await self._set_state(row.name, state)

    async def _set_state(self, name: VersionName, state: VersionState, reason: str | None = None) -> None:
        await asyncio.to_thread(self._store.versions.set_state, StateChange(name, state, reason))

    @asynccontextmanager
    async def _only_publisher(self) -> AsyncIterator[None]:
        if self._publishing.locked():
            raise Conflict("another publish is under way; wait for its answer and try again")
        async with self._publishing:
            yield


def _check_target(row: AliasRow, version: VersionName) -> None:
    owner = row.engine if version.is_base else row.name
    if version.alias != owner:
        raise Conflict(
            f"{version} does not belong to '{row.name}': it takes {row.name}@N, or {row.engine}@0", param="version"
        )
    if version == row.live:
        raise Conflict(f"'{row.name}' names {version} already", param="version")


def _state_changes(old: AliasRow, to: VersionName, left: VersionState) -> tuple[StateChange, ...]:
    """The bare base has no state. What `previous` named is retired, unless it is what comes back."""
    states = {to: VersionState.LIVE, old.live: left}
    if old.previous is not None and old.previous != to:
        states[old.previous] = VersionState.RETIRED
    return tuple(StateChange(name, state) for name, state in states.items() if not name.is_base)
