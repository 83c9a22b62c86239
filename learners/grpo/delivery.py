"""How a step's adapter reaches the engines: copied, loaded, proven on each replica, then sampled from.

Beside generation: nothing pauses. A version is used by the replicas that have proven that they serve it; one that is
away, starts anew or cannot be reached is brought the newest version when it is back. What no running group uses any
more is released before the next load, so a replica never holds more than `max_staleness + 2` versions of a job.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engines.adapter import WEIGHTS_FILE, Parcel, ProbeRecord
from engines.errors import DeadlineExceeded, Refused, TandemError, Unavailable
from engines.freshness import FreshnessWatch
from engines.profiles import FamilyProfile
from engines.proof import Agreement, check_agreement, check_delivery
from engines.replica import Replica
from engines.types import ProbePrompt, ProbeScore, VersionName
from rollout.types import Target

LEASE_TTL_S = 120.0
RETRY_S = 0.25


@dataclass(frozen=True, slots=True)
class Push:
    """One version on its way: its files, the modules that it trains, and the learner's half of the proof."""

    version: VersionName
    parcel: Parcel
    modules: tuple[str, ...]
    records: tuple[ProbeRecord, ...]


@dataclass(frozen=True, slots=True)
class Delivered:
    """A push that at least one replica serves. `error` and `effect`: mean absolute log-probabilities, in nats."""

    version: VersionName
    replicas: tuple[str, ...]
    seconds: float
    effect: float
    error: float
    misses: tuple[str, ...] = ()


@dataclass(slots=True)
class _Station:
    """What is known of one replica: where it answers, which versions it has proven, how its base scores the probes, and
    why the last version failed.
    """

    replica: Replica
    target: Target | None = None
    holds: set[VersionName] = field(default_factory=set)
    base_scores: tuple[ProbeScore, ...] | None = None
    error: str = ""
    freshness: FreshnessWatch = field(default_factory=FreshnessWatch)

    def forget(self) -> None:
        """All that was known of an engine that is away or started anew: the same version says nothing new then."""
        self.holds.clear()
        self.base_scores = None
        self.freshness = FreshnessWatch()


class Delivery:
    """Belongs to one event loop."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        owner: str,
        profile: FamilyProfile,
        max_mismatch: float,
        in_use: Callable[[], frozenset[VersionName]],
        use: Callable[[VersionName, tuple[Target, ...]], None],
    ) -> None:
        self._stations = [_Station(replica) for replica in replicas]
        self._owner = owner
        self._profile = profile
        self._max_mismatch = max_mismatch
        self._in_use = in_use
        self._use = use
        self._newest: Push | None = None
        self._before_newest: tuple[ProbeRecord, ...] = ()
        self.begun = asyncio.Event()
        """Set once a version was proven on a replica."""
        self._changing = asyncio.Lock()

    async def deliver(self, push: Push, timeout_s: float) -> Delivered:
        """Returns once a replica serves the version and new groups are sampled from it.

        Raises `Refused` if what a replica serves is not what was learned (nothing is sampled from it), and
        `DeadlineExceeded` if no replica took it in time, with what each said last.
        """
        began_s = time.monotonic()
        async with self._changing:
            try:
                async with asyncio.timeout(timeout_s):
                    agreements, misses = await self._bring_all(push)
            except TimeoutError:
                said = "; ".join(f"{one.replica.name}: {one.error or 'no answer'}" for one in self._stations)
                raise DeadlineExceeded(f"no replica took {push.version} within {timeout_s:.0f} s: {said}") from None
            self._before_newest = self._newest.records if self._newest else ()
            self._newest = push
            self.begun.set()
            self._use(push.version, self.targets(push.version))
        worst = max(agreements, key=lambda one: one.error)
        names = tuple(target.name for target in self.targets(push.version))
        return Delivered(push.version, names, time.monotonic() - began_s, worst.effect, worst.error, misses)

    async def tend(self) -> None:
        """Renews leases, and brings the newest version to replicas that lack it. To be called now and then.

        Raises `Refused` as `deliver` does.
        """
        async with self._changing:
            push = self._newest
            if push is None:
                return
            before = self.targets(push.version)
            await asyncio.gather(*(self._tend_one(station, push) for station in self._stations))
            after = self.targets(push.version)
            if after != before:
                self._use(push.version, after)

    async def close(self) -> None:
        """Releases all that the job held, where it can; what it cannot ends with its lease.

        `tend` does nothing any more.
        """
        async with self._changing:
            self._newest = None
            releases = (station.replica.keep_only(self._owner, ()) for station in self._stations)
            await asyncio.gather(*releases, return_exceptions=True)

    async def _bring_all(self, push: Push) -> tuple[tuple[Agreement, ...], tuple[str, ...]]:
        while True:
            bring = (self._bring(station, push) for station in self._stations)
            outcomes = await asyncio.gather(*bring, return_exceptions=True)
            agreements = tuple(outcome for outcome in outcomes if isinstance(outcome, Agreement))
            errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            for error in errors:
                if isinstance(error, Refused) or not isinstance(error, TandemError):
                    raise error
            if agreements:
                return agreements, tuple(str(error) for error in errors)
            if self._newest is not None:  # nothing more is asked of replicas that are away
                self._use(self._newest.version, self.targets(self._newest.version))
            await asyncio.sleep(RETRY_S)

    async def _bring(self, station: _Station, push: Push) -> Agreement:
        """Raises `Refused` for a wrong adapter, and what a replica raises that can't take one now."""
        replica = station.replica
        try:
            await self._find(station)
            await self._make_room(station, push.version)
            await replica.copy(push.parcel)
            loaded = await replica.load(self._owner, push.version, LEASE_TTL_S)
            check_delivery(loaded, push.parcel.sha256_of(WEIGHTS_FILE) or "", push.modules, self._profile)
            agreement = await self._probe(station, push)
        except TandemError as error:
            station.holds.discard(push.version)
            station.error = error.message
            raise
        station.holds.add(push.version)
        station.error = ""
        return agreement

    async def _find(self, station: _Station) -> None:
        """Where it answers now; an engine that started anew holds nothing."""
        try:
            status = await station.replica.status()
        except TandemError:
            station.target = None
            station.forget()
            raise
        if status.endpoint is None:
            station.target = None
            station.forget()
            raise Unavailable(f"replica {station.replica.name} is {status.health.state}: {status.health.detail}")
        target = Target(station.replica.name, status.endpoint)
        if station.target != target:
            station.forget()
        station.target = target
        station.holds.intersection_update(adapter.version for adapter in status.adapters)

    async def _make_room(self, station: _Station, coming: VersionName) -> None:
        keep = {*self._in_use(), coming}
        if self._newest is not None:
            keep.add(self._newest.version)
        station.holds.intersection_update(keep)
        await station.replica.keep_only(self._owner, keep)

    async def _probe(self, station: _Station, push: Push) -> Agreement:
        prompts = [record.prompt() for record in push.records]
        if not prompts:
            return Agreement(0.0, 0.0)
        plain = await self._base_scores(station, prompts)
        tuned = await station.replica.probe(push.version, prompts)
        agreement = check_agreement(push.records, plain, tuned)
        before = self._records_before(push)
        if before:
            station.freshness.check(push.records, before, plain, tuned)
        if not agreement.error <= self._max_mismatch:
            raise Refused(
                f"replica {station.replica.name} does not sample from what was learned: log-probabilities of "
                f"{push.version} differ by {agreement.error:.4f} on average, and max_mismatch is {self._max_mismatch:g}"
            )
        return agreement

    async def _base_scores(self, station: _Station, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        """The same for every push until the engine starts anew."""
        if station.base_scores is None:
            base = VersionName(station.replica.engine, 0)
            station.base_scores = tuple(await station.replica.probe(base, prompts))
        return station.base_scores

    def _records_before(self, push: Push) -> tuple[ProbeRecord, ...]:
        """Of the version before this one; none before the first."""
        if self._newest is None:
            return ()
        return self._before_newest if push.version == self._newest.version else self._newest.records

    async def _tend_one(self, station: _Station, push: Push) -> None:
        try:
            await self._find(station)
            if push.version not in station.holds:
                await self._bring(station, push)
            held = [version for version in {*self._in_use(), push.version} if version in station.holds]
            await station.replica.renew(self._owner, held, LEASE_TTL_S)
        except Refused:
            raise
        except TandemError:  # it is away, full, or lost what it held: the next look brings it what it lacks
            station.target = None
            station.forget()

    def targets(self, version: VersionName) -> tuple[Target, ...]:
        """The replicas that have proven that they serve it."""
        return tuple(
            station.target for station in self._stations if station.target is not None and version in station.holds
        )
