"""The ledger of an engine's adapter slots: who needs which version, which id it has, and what may go.

Pure: no clock, no engine. The actor does what a plan says, in this order:

    plan = ledger.lease(owner, version, ttl_s, now_s)
    for slot in plan.evict:  drop it in the engine, then ledger.confirm_evicted(slot)
    if plan.must_load:       load plan.version in the engine as plan.slot_id
    ledger.commit(plan)      or, after any failure, ledger.undo(plan)

    slot:  loading -> loaded <-> evicting -> (gone);  loading -> (gone) by undo

Ids grow and are never reused, since an engine keys what it holds by them.

Slots are of two quotas: `reserved_for_rollout` of them for jobs together, the rest for the owner `SERVING`. Nobody is
granted more than the quota has, so a lease within it stands until its end, whatever others do. A job may lease a
version beyond its quota while serving leases it: as a guest, whose lease ends with serving's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from engines.errors import BadRequest, Conflict, Internal, NoSlot, NotFound
from engines.types import VersionName


class SlotState(StrEnum):
    """`loading` until committed; `evicting` from the decision until the engine has dropped it."""

    LOADING = "loading"
    LOADED = "loaded"
    EVICTING = "evicting"


SERVING = "serving"
"""The owner that the gateway leases as. Every other owner is a job."""

_TRANSITIONS = {
    SlotState.LOADING: frozenset({SlotState.LOADED}),
    SlotState.LOADED: frozenset({SlotState.EVICTING}),
    SlotState.EVICTING: frozenset({SlotState.LOADED}),
}


@dataclass(frozen=True, slots=True)
class SlotLease:
    """`owner` needs `version` until `expires_s` (on the clock of `now_s`; None: until released).

    A guest's lease takes no slot of its quota, and is live only while serving leases the version.
    """

    version: VersionName
    owner: str
    slot_id: int
    expires_s: float | None
    is_guest: bool = False

    def is_live(self, now_s: float) -> bool:
        return self.expires_s is None or now_s < self.expires_s


@dataclass(frozen=True, slots=True)
class AdapterSlot:
    """One version in the engine, or on its way in or out."""

    version: VersionName
    slot_id: int
    state: SlotState


@dataclass(frozen=True, slots=True)
class LeasePlan:
    """What `lease` decided: drop `evict`, then load if `must_load`. With nothing to load the lease already holds."""

    lease: SlotLease
    must_load: bool
    evict: tuple[AdapterSlot, ...] = ()

    @property
    def version(self) -> VersionName:
        return self.lease.version

    @property
    def slot_id(self) -> int:
        return self.lease.slot_id


class _Quota(StrEnum):
    SERVING = "for serving"
    ROLLOUT = "reserved for rollouts"


def _quota_of(owner: str) -> _Quota:
    return _Quota.SERVING if owner == SERVING else _Quota.ROLLOUT


@dataclass(slots=True)
class _Entry:
    slot: AdapterSlot
    leases: dict[str, SlotLease] = field(default_factory=dict)

    def live(self, now_s: float) -> tuple[SlotLease, ...]:
        is_served = SERVING in self.leases and self.leases[SERVING].is_live(now_s)
        return tuple(
            lease for lease in self.leases.values() if lease.is_live(now_s) and (is_served or not lease.is_guest)
        )

    def is_live(self, now_s: float) -> bool:
        return self.slot.state is SlotState.LOADING or bool(self.live(now_s))

    def takes(self, quota: _Quota, now_s: float) -> bool:
        """Whether it counts against the quota: what is being loaded does, however short its lease is."""
        leases = self.leases.values() if self.slot.state is SlotState.LOADING else self.live(now_s)
        return any(_quota_of(lease.owner) is quota and not lease.is_guest for lease in leases)

    def move(self, state: SlotState) -> None:
        if state not in _TRANSITIONS[self.slot.state]:
            raise Internal(f"the slot of {self.slot.version} cannot go from {self.slot.state} to {state}")
        self.slot = replace(self.slot, state=state)


class AdapterLedger:
    """At most `num_slots` versions in the engine at once; a version has one slot, shared by its owners' leases.

    `reserved_for_rollout` of the slots are for jobs, and they have no others.
    """

    def __init__(self, num_slots: int, reserved_for_rollout: int = 0, first_id: int = 1) -> None:
        if num_slots < 1:
            raise BadRequest(f"an engine needs at least one adapter slot, not {num_slots}", param="max_loras")
        if not 0 <= reserved_for_rollout <= num_slots:
            raise BadRequest(
                f"{reserved_for_rollout} of {num_slots} adapter slots cannot be reserved; lower reserved_for_rollout",
                param="reserved_for_rollout",
            )
        self._num_slots = num_slots
        self._sizes = {_Quota.SERVING: num_slots - reserved_for_rollout, _Quota.ROLLOUT: reserved_for_rollout}
        self._next_id = first_id
        self._entries: dict[VersionName, _Entry] = {}

    def successor(self) -> AdapterLedger:
        """An empty ledger for the engine that follows this one; it goes on counting ids."""
        return AdapterLedger(self._num_slots, self._sizes[_Quota.ROLLOUT], self._next_id)

    def lease(self, owner: str, version: VersionName, ttl_s: float | None, now_s: float) -> LeasePlan:
        """Leases `version`, or prolongs the owner's lease of it; `ttl_s` None: until released.

        Raises `NoSlot` if the owner's quota is used up, naming who holds which slot for how long, `Conflict` while that
        very version is being loaded or dropped, `BadRequest` for the bare base, which needs no slot. What raises
        changes nothing.
        """
        expires_s = _expiry(ttl_s, now_s)
        if version.is_base:
            raise BadRequest(f"{version} is the bare base and needs no adapter slot", param="version")
        entry = self._entries.get(version)
        if entry is not None:
            if entry.slot.state is not SlotState.LOADED:
                raise Conflict(f"{version} is {entry.slot.state} right now: try again", param="version")
            return LeasePlan(self._grant(entry, owner, expires_s, now_s), must_load=False)
        self._check_quota(_quota_of(owner), now_s)
        evict = self._make_room(now_s)
        return LeasePlan(self._open(version, owner, expires_s), must_load=True, evict=evict)

    def commit(self, plan: LeasePlan) -> None:
        """The engine holds the plan's version. Raises `Internal` if an eviction of the plan was not confirmed."""
        if not plan.must_load:
            return
        for slot in plan.evict:
            if self._find(slot) is not None:
                raise Internal(f"{plan.version} was loaded before {slot.version} was dropped")
        self._loading(plan).move(SlotState.LOADED)

    def undo(self, plan: LeasePlan) -> None:
        """The plan failed: its slot is free again, and what was not dropped yet stays as it was."""
        if not plan.must_load:
            return
        self._loading(plan)
        del self._entries[plan.version]
        for slot in plan.evict:
            entry = self._find(slot)
            if entry is not None and entry.slot.state is SlotState.EVICTING:
                entry.move(SlotState.LOADED)

    def begin_eviction(self, version: VersionName, now_s: float) -> AdapterSlot | None:
        """Takes a version out now: drop it in the engine, then `confirm_evicted`. None if it has no slot.

        Raises `Conflict` while somebody leases it, or while it is on its way in or out.
        """
        entry = self._entries.get(version)
        if entry is None:
            return None
        if entry.slot.state is not SlotState.LOADED:
            raise Conflict(f"{version} is {entry.slot.state} right now: try again", param="version")
        if entry.is_live(now_s):
            owners = ", ".join(lease.owner for lease in self.holders(version, now_s))
            raise Conflict(f"{version} is leased by {owners}: release it first", param="version")
        entry.move(SlotState.EVICTING)
        return entry.slot

    def confirm_evicted(self, slot: AdapterSlot) -> None:
        """The engine holds `slot` no longer: its expired leases end with it."""
        self._evicting(slot)
        del self._entries[slot.version]

    def renew(self, owner: str, version: VersionName, ttl_s: float | None, now_s: float) -> SlotLease:
        """Prolongs a lease, an expired one too if neither its slot nor its place in the quota was taken.

        Raises `NotFound` otherwise: lease again.
        """
        expires_s = _expiry(ttl_s, now_s)
        entry = self._entries.get(version)
        if entry is None or owner not in entry.leases or entry.slot.state is SlotState.EVICTING:
            raise NotFound(_not_leased(owner, version), param="version")
        try:
            return self._grant(entry, owner, expires_s, now_s)
        except NoSlot as error:
            raise NotFound(_not_leased(owner, version), param="version") from error

    def release(self, owner: str, version: VersionName) -> bool:
        """Ends a lease; twice does no harm. True if a loaded version is left without any lease.

        It stays in the engine until its slot is needed; `begin_eviction` takes it out now.
        """
        entry = self._entries.get(version)
        if entry is None or entry.slot.state is not SlotState.LOADED:
            return False
        entry.leases.pop(owner, None)
        return not entry.leases

    def leased_by(self, owner: str) -> tuple[VersionName, ...]:
        """What `owner` holds a lease of, also an expired one, oldest slot first."""
        return tuple(version for version, entry in self._entries.items() if owner in entry.leases)

    def holders(self, version: VersionName, now_s: float) -> tuple[SlotLease, ...]:
        """The live leases of one version."""
        entry = self._entries.get(version)
        return () if entry is None else entry.live(now_s)

    def leases(self, now_s: float) -> tuple[SlotLease, ...]:
        """The live leases of all versions, oldest slot first."""
        return tuple(lease for version in self._entries for lease in self.holders(version, now_s))

    def slots(self) -> tuple[AdapterSlot, ...]:
        """Every slot in use, oldest first."""
        return tuple(entry.slot for entry in self._entries.values())

    def _open(self, version: VersionName, owner: str, expires_s: float | None) -> SlotLease:
        entry = _Entry(AdapterSlot(version, self._next_id, SlotState.LOADING))
        self._next_id += 1
        self._entries[version] = entry
        return _put(entry, owner, expires_s, is_guest=False)

    def _grant(self, entry: _Entry, owner: str, expires_s: float | None, now_s: float) -> SlotLease:
        quota = _quota_of(owner)
        is_guest = not entry.takes(quota, now_s) and self._num_free(quota, now_s) < 1
        if is_guest and not (quota is _Quota.ROLLOUT and entry.takes(_Quota.SERVING, now_s)):
            raise NoSlot(self._used_up(quota, now_s), param="version")
        return _put(entry, owner, expires_s, is_guest=is_guest)

    def _num_free(self, quota: _Quota, now_s: float) -> int:
        return self._sizes[quota] - sum(entry.takes(quota, now_s) for entry in self._entries.values())

    def _check_quota(self, quota: _Quota, now_s: float) -> None:
        if self._num_free(quota, now_s) < 1:
            raise NoSlot(self._used_up(quota, now_s), param="version")

    def _make_room(self, now_s: float) -> tuple[AdapterSlot, ...]:
        # What is being evicted makes room for the plan that decided so, and that one counts already.
        staying = [entry for entry in self._entries.values() if entry.slot.state is not SlotState.EVICTING]
        if len(staying) < self._num_slots:
            return ()
        # The quotas add up to all slots and ours is not used up: something is idle.
        idle = (entry for entry in staying if not entry.is_live(now_s))
        oldest = min(idle, key=lambda entry: entry.slot.slot_id)
        oldest.move(SlotState.EVICTING)
        return (oldest.slot,)

    def _used_up(self, quota: _Quota, now_s: float) -> str:
        if not self._sizes[quota]:
            return f"no adapter slots are {quota}: give it some by the engine's max_loras and reserved_for_rollout"
        held = "; ".join(_describe(entry, now_s) for entry in self._entries.values() if entry.is_live(now_s))
        return (
            f"all {self._sizes[quota]} adapter slots {quota} are leased: {held}. "
            f"Release one, wait for a lease to end, or raise the engine's {_KNOBS[quota]}"
        )

    def _find(self, slot: AdapterSlot) -> _Entry | None:
        entry = self._entries.get(slot.version)
        return entry if entry is not None and entry.slot.slot_id == slot.slot_id else None

    def _evicting(self, slot: AdapterSlot) -> _Entry:
        entry = self._find(slot)
        if entry is None or entry.slot.state is not SlotState.EVICTING:
            raise Internal(f"slot {slot.slot_id} of {slot.version} is not being evicted: no plan decided so")
        return entry

    def _loading(self, plan: LeasePlan) -> _Entry:
        entry = self._find(AdapterSlot(plan.version, plan.slot_id, SlotState.LOADING))
        if entry is None or entry.slot.state is not SlotState.LOADING:
            raise Internal(f"slot {plan.slot_id} of {plan.version} is not being loaded: its plan has ended already")
        return entry


_KNOBS = {_Quota.SERVING: "max_loras", _Quota.ROLLOUT: "max_loras and reserved_for_rollout"}


def _describe(entry: _Entry, now_s: float) -> str:
    owners = ", ".join(f"{lease.owner} ({_time_left(lease, now_s)})" for lease in entry.live(now_s))
    return f"{entry.slot.version} by {owners or entry.slot.state}"


def _time_left(lease: SlotLease, now_s: float) -> str:
    return "until released" if lease.expires_s is None else f"for another {lease.expires_s - now_s:.0f} s"


def _not_leased(owner: str, version: VersionName) -> str:
    return f"{owner} holds no lease of {version}, or its slot was taken: lease it again"


def _put(entry: _Entry, owner: str, expires_s: float | None, *, is_guest: bool) -> SlotLease:
    lease = SlotLease(entry.slot.version, owner, entry.slot.slot_id, expires_s, is_guest)
    entry.leases[owner] = lease
    return lease


def _expiry(ttl_s: float | None, now_s: float) -> float | None:
    if ttl_s is None:
        return None
    if not ttl_s > 0:
        raise BadRequest(f"a lease of {ttl_s} s has ended before it began: give a positive ttl_s", param="ttl_s")
    return now_s + ttl_s
