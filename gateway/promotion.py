"""Publishing: verify -> copy -> stage -> probe -> flip -> drain -> retire.

Until the flip nothing that a client can see has changed, and a failure undoes what was staged; the flip is one database
transaction with a generation number; after it the old version drains and is unloaded. One publish at a time: a second
caller gets `Conflict`. It is made on the replicas in service; one that is not loads what is named before it joins.
What takes long and changes nothing is done when a version is registered, as far as it can be: see `_send_ahead`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from engines.adapter import VerifiedAdapter
from engines.errors import Conflict, DeadlineExceeded, Refused, Unavailable
from engines.fleet import Fleet
from engines.proof import check_agreement, check_delivery
from engines.types import ProbePrompt, VersionName
from gateway.membership import Membership
from gateway.metrics import Metrics
from gateway.registry import Registry
from gateway.route import RouteTable
from gateway.steps import StepClock
from gateway.store import StateChange
from gateway.types import AliasRow, PublishReport, VersionRow, VersionState, check_transition

_log = logging.getLogger(__name__)
SEND_AHEAD_TIMEOUT_S = 10.0
_ON_ITS_WAY = frozenset({VersionState.STAGED, VersionState.PROBED})


class Publisher:
    """Moves versions through their states, and aliases from version to version."""

    def __init__(
        self,
        registry: Registry,
        routes: RouteTable,
        membership: Membership,
        metrics: Metrics,
        drain_timeout_s: float,
    ) -> None:
        self._registry = registry
        self._store = registry.store
        self._routes = routes
        self._membership = membership
        self._metrics = metrics
        self._drain_timeout_s = drain_timeout_s
        self._publishing = asyncio.Lock()

    async def register(self, alias: str, path: Path) -> VersionRow:
        """Copies a verified adapter into the registry, or raises `AdapterRefused` and changes nothing."""
        row, verified = await asyncio.to_thread(self._registry.register, alias, path)
        try:
            async with asyncio.timeout(SEND_AHEAD_TIMEOUT_S):
                await self._send_ahead(row, verified)
        except Exception as error:  # named boundary: it is registered, and a publish does what is missing
            _log.warning("%s is registered, and not on every replica: %r", row.name, error)
        return row

    async def promote(self, alias: str, version: VersionName) -> PublishReport:
        """Makes `alias` name `version` on every replica in service, or changes nothing."""
        async with self.only_publisher():
            clock = StepClock(self._metrics)
            row = await asyncio.to_thread(self._store.aliases.get, alias)
            _check_target(row, version)
            if not version.is_base:
                self._registry.check_takes_adapters(row.engine)
            async with self._membership.changing:
                fleet = self._membership.fleet(row.engine)
                try:
                    proof = "the bare base" if version.is_base else await self._deliver(version, row, fleet, clock)
                    report = await self._flip(row, version, row.live, VersionState.STANDBY, proof, clock)
                except BaseException as error:
                    await asyncio.shield(self._undo(version, fleet, error))
                    raise
            return await self._finish(replace(report, replicas=fleet.names), row, row.previous, clock)

    async def rollback(self, alias: str) -> PublishReport:
        """One flip back to what the alias named before; the version left behind is drained and unloaded."""
        async with self.only_publisher():
            clock = StepClock(self._metrics)
            row = await asyncio.to_thread(self._store.aliases.get, alias)
            if row.previous is None:
                raise Conflict(f"'{alias}' has nothing to roll back to: it names {row.live}", param="alias")
            async with self._membership.changing:
                fleet = self._membership.fleet(row.engine)
                try:
                    report = await self._flip(row, row.previous, None, VersionState.ROLLED_BACK, "kept loaded", clock)
                except BaseException:
                    await asyncio.shield(self._read_aliases())
                    raise
            return await self._finish(replace(report, replicas=fleet.names), row, row.live, clock)

    async def recover(self) -> None:
        """What a publisher that died left behind: a version on its way that nothing names may be tried again."""
        named = self._routes.named_versions()
        for row in await asyncio.to_thread(self._store.versions.list):
            if row.state in _ON_ITS_WAY and row.name not in named:
                await self._set_state(row.name, VersionState.VERIFIED, "the publish was interrupted")

    async def _send_ahead(self, row: VersionRow, verified: VerifiedAdapter) -> None:
        """The files to the replicas in service, and what the bare base says to the probe, which each keeps."""
        fleet = self._membership.fleet(row.engine)
        await fleet.copy(await asyncio.to_thread(self._registry.read, row))
        if prompts := _prompts(verified):
            await fleet.probe(VersionName(row.engine, 0), prompts)

    async def _deliver(self, name: VersionName, alias: AliasRow, fleet: Fleet, clock: StepClock) -> str:
        async with clock.step("verify"):
            row, verified = await asyncio.to_thread(self._reverify, name, alias)
        async with clock.step("copy"):
            lacking = await fleet.lacking(name, dict(verified.files()))
            if lacking.replicas:
                await lacking.copy(await asyncio.to_thread(self._registry.read, row))
        async with clock.step("stage"):
            delivery = await self._stage(row, verified, fleet, is_read=bool(lacking.replicas))
        async with clock.step("probe"):
            return await self._probe(row, verified, fleet, delivery)

    def _reverify(self, name: VersionName, alias: AliasRow) -> tuple[VersionRow, VerifiedAdapter]:
        """Blocks."""
        row = self._store.versions.get(name)
        _check_base(row, alias, self._registry.base_of(alias.engine).base_hash)
        row = replace(row, engine=alias.engine)  # another generation may serve the same base
        if row.state is not VersionState.STANDBY:
            check_transition(name, row.state, VersionState.STAGED)
        return row, self._registry.reverify(row)

    async def _stage(self, row: VersionRow, verified: VerifiedAdapter, fleet: Fleet, *, is_read: bool) -> str:
        """`is_read`: the registry's weights have been read by this publish, and were those that were registered."""
        loading = asyncio.create_task(fleet.load(row.name))
        try:
            if not is_read:
                await asyncio.to_thread(self._registry.check_weights, row)
        except BaseException:
            await asyncio.gather(loading, return_exceptions=True)  # undone by whoever sees why the file is refused
            raise
        loaded = await loading
        profile = self._registry.base_of(row.engine).profile
        proofs = fleet.judge(lambda one: check_delivery(one, row.weights_sha256, verified.modules, profile), loaded)
        await self._advance(row, VersionState.STAGED)
        for name in fleet.names:
            self._routes.add_version(name, row.name)
        return proofs[0]

    async def _probe(self, row: VersionRow, verified: VerifiedAdapter, fleet: Fleet, delivery: str) -> str:
        proof = delivery
        if prompts := _prompts(verified):
            base = VersionName(row.engine, 0)
            plain, tuned = await asyncio.gather(fleet.probe(base, prompts), fleet.probe(row.name, prompts))
            proofs = fleet.judge(partial(check_agreement, verified.probe()), plain, tuned)
            worst = max(proofs, key=lambda one: one.error)
            if worst.is_measurable:
                proof = (
                    f"differences of log-probabilities (effect {worst.effect:.3f}, error {worst.error:.4f}), {delivery}"
                )
        await self._advance(row, VersionState.PROBED)
        return proof

    async def _undo(self, name: VersionName, fleet: Fleet, error: BaseException) -> None:
        """Reconciles with what the database says: an alias that names the version keeps it, else nothing is left."""
        await self._read_aliases()
        if name.is_base or name in self._routes.named_versions():
            return
        await self._release(name, fleet)
        row = await asyncio.to_thread(self._store.versions.get, name)
        if isinstance(error, Refused):
            await self._set_state(name, VersionState.REJECTED, error.message)
        elif row.state in _ON_ITS_WAY:
            await self._set_state(name, VersionState.VERIFIED, str(error))

    async def _read_aliases(self) -> None:
        for alias in await asyncio.to_thread(self._store.aliases.all):
            if alias.name in self._routes.snapshot.aliases:  # another one is not in the configuration any more
                self._routes.set_alias(alias)

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

    async def _finish(
        self, report: PublishReport, row: AliasRow, left: VersionName | None, clock: StepClock
    ) -> PublishReport:
        """Drains and unloads the version that nothing names any more."""
        if left is not None and left not in self._routes.named_versions() and not left.is_base:
            try:
                async with clock.step("drain"):
                    await self._routes.drained(left, self._drain_timeout_s)
                async with clock.step("retire"):
                    await self._release(left, self._membership.fleet(row.engine))
            except (DeadlineExceeded, Unavailable) as error:  # the flip stands; `Membership.tend` drops what is left
                _log.warning("%s is not unloaded yet: %s", left, error.message)
        return replace(report, steps=tuple(clock.steps))

    async def _release(self, name: VersionName, fleet: Fleet) -> None:
        """On every replica that can; on one that can't, `Membership` drops it when the replica is back."""
        for replica_name in fleet.names:
            self._routes.remove_version(replica_name, name)
        # One that left meanwhile may be starting anew, and would be waited for.
        for miss in await fleet.only(self._membership.is_member).release(name):
            _log.warning("%s is still loaded on %s: %s", name, miss.replica, miss.error)

    async def _advance(self, row: VersionRow, state: VersionState) -> None:
        """A standby is staged and probed already, and stays what it is until the flip."""
        if row.state is not VersionState.STANDBY:
            await self._set_state(row.name, state)

    async def _set_state(self, name: VersionName, state: VersionState, reason: str | None = None) -> None:
        await asyncio.to_thread(self._store.versions.set_state, StateChange(name, state, reason))

    @asynccontextmanager
    async def only_publisher(self) -> AsyncIterator[None]:
        """Whoever changes what aliases name. Raises `Conflict` while somebody else does."""
        if self._publishing.locked():
            raise Conflict("another publish or release is under way; wait for its answer and try again")
        async with self._publishing:
            yield


def _prompts(verified: VerifiedAdapter) -> tuple[ProbePrompt, ...]:
    return tuple(record.prompt() for record in verified.probe())


def _check_target(row: AliasRow, version: VersionName) -> None:
    owner = row.engine if version.is_base else row.name
    if version.alias != owner:
        raise Conflict(
            f"{version} does not belong to '{row.name}': it takes {row.name}@N, or {row.engine}@0", param="version"
        )
    if version == row.live:
        raise Conflict(f"'{row.name}' names {version} already", param="version")


def _check_base(row: VersionRow, alias: AliasRow, base_hash: str) -> None:
    if row.base_hash != base_hash:
        raise Conflict(
            f"{row.name} was made for the base of {row.engine}, and '{alias.name}' is served by {alias.engine}, which "
            "is another model: train it anew on that one",
            param="version",
        )


def _state_changes(old: AliasRow, to: VersionName, left: VersionState) -> tuple[StateChange, ...]:
    """The bare base has no state. What `previous` named is retired, unless it is what comes back."""
    states = {to: VersionState.LIVE, old.live: left}
    if old.previous is not None and old.previous != to:
        states[old.previous] = VersionState.RETIRED
    return tuple(StateChange(name, state) for name, state in states.items() if not name.is_base)
