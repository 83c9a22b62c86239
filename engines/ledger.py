"""The ledger of an engine's adapter slots: who needs which version, which id it has, and what may go.

Pure: no clock, no engine. The actor does what a plan says, in this order:

    plan = ledger.lease(owner, version, ttl_s, now_s)
    for slot in plan.evict:  drop it in the engine, then ledger.confirm_evicted(slot)
    if plan.must_load:       load plan.version in the engine as plan.slot_id
    ledger.commit(plan)      or, after any failure, ledger.undo(plan)

    slot:  loading -> loaded <-> evicting -> (gone);  loading -> (gone) by undo

Ids grow and are never reused, since an engine keys what it holds by them.
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


_TRANSITIONS = {
    SlotState.LOADING: frozenset({SlotState.LOADED}),
    SlotState.LOADED: frozenset({SlotState.EVICTING}),
    SlotState.EVICTING: frozenset({SlotState.LOADED}),
}


@dataclass(frozen=True, slots=True)
class SlotLease:
    """`owner` needs `version` until `expires_s` (on the clock of `now_s`; None: until released)."""

    version: VersionName
    owner: str
    slot_id: int
    expires_s: float | None

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


@dataclass(slots=True)
class _Entry:
    slot: AdapterSlot
    leases: dict[str, SlotLease] = field(default_factory=dict)

    def is_live(self, now_s: float) -> bool:
        return self.slot.state is SlotState.LOADING or any(lease.is_live(now_s) for lease in self.leases.values())

    def move(self, state: SlotState) -> None:
        if state not in _TRANSITIONS[self.slot.state]:
            raise Internal(f"the slot of {self.slot.version} cannot go from {self.slot.state} to {state}")
        self.slot = replace(self.slot, state=state)


class AdapterLedger:
    """At most `num_slots` versions in the engine at once; a version has one slot, shared by its owners' leases."""

    def __init__(self, num_slots: int, first_id: int = 1) -> None:
        if num_slots < 1:
            raise BadRequest(f"an engine needs at least one adapter slot, not {num_slots}", param="max_loras")
        self._num_slots = num_slots
        self._next_id = first_id
        self._entries: dict[VersionName, _Entry] = {}

    def successor(self) -> AdapterLedger:
        """An empty ledger for the engine that follows this one; it goes on counting ids."""
        return AdapterLedger(self._num_slots, self._next_id)

    def lease(self, owner: str, version: VersionName, ttl_s: float | None, now_s: float) -> LeasePlan:
        """Leases `version`, or prolongs the owner's lease of it; `ttl_s` None: until released.

        Raises `NoSlot` naming the holders, `Conflict` while that very version is being loaded or dropped, `BadRequest`
        for the bare base, which needs no slot. What raises changes nothing.
        """
        expires_s = _expiry(ttl_s, now_s)
        if version.is_base:
            raise BadRequest(f"{version} is the bare base and needs no adapter slot", param="version")
        entry = self._entries.get(version)
        if entry is not None:
            return LeasePlan(_join(entry, owner, expires_s), must_load=False)
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
        """Takes a version out now: drop it in the engine, then `confirm_evicted`, or `cancel_eviction` if that fails.

        None if it has no slot. Raises `Conflict` while somebody leases it, or while it is on its way in or out.
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

    def cancel_eviction(self, slot: AdapterSlot) -> None:
        """The engine could not drop `slot` and holds it still."""
        self._evicting(slot).move(SlotState.LOADED)

    def renew(self, owner: str, version: VersionName, ttl_s: float | None, now_s: float) -> SlotLease:
        """Prolongs a lease, an expired one too if nobody needed its slot. Raises `NotFound` otherwise: lease again."""
        expires_s = _expiry(ttl_s, now_s)
        entry = self._entries.get(version)
        if entry is None or owner not in entry.leases or entry.slot.state is SlotState.EVICTING:
            raise NotFound(
                f"{owner} holds no lease of {version}, or its slot was taken: lease it again", param="version"
            )
        return _grant(entry, owner, expires_s)

    def release(self, owner: str, version: VersionName) -> bool:
        """Ends a lease; twice does no harm. True if a loaded version is left without any lease.

        It stays in the engine until its slot is needed; `begin_eviction` takes it out now.
        """
        entry = self._entries.get(version)
        if entry is None or entry.slot.state is not SlotState.LOADED:
            return False
        entry.leases.pop(owner, None)
        return not entry.leases

    def release_owner(self, owner: str) -> tuple[VersionName, ...]:
        """Ends every lease of `owner`. Returns the versions that this left without any."""
        held = [version for version, entry in self._entries.items() if owner in entry.leases]
        return tuple(version for version in held if self.release(owner, version))

    def holders(self, version: VersionName, now_s: float) -> tuple[SlotLease, ...]:
        """The live leases of one version."""
        entry = self._entries.get(version)
        return () if entry is None else tuple(lease for lease in entry.leases.values() if lease.is_live(now_s))

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
        return _grant(entry, owner, expires_s)

    def _make_room(self, now_s: float) -> tuple[AdapterSlot, ...]:
        # What is being evicted makes room for the plan that decided so, and that one counts already.
        staying = [entry for entry in self._entries.values() if entry.slot.state is not SlotState.EVICTING]
        if len(staying) < self._num_slots:
            return ()
        idle = [entry for entry in staying if not entry.is_live(now_s)]
        if not idle:
            raise NoSlot(self._all_leased(now_s), param="version")
        oldest = min(idle, key=lambda entry: entry.slot.slot_id)
        oldest.move(SlotState.EVICTING)
        return (oldest.slot,)

    def _all_leased(self, now_s: float) -> str:
        held = []
        for slot in self.slots():
            owners = ", ".join(lease.owner for lease in self.holders(slot.version, now_s))
            held.append(f"{slot.version} by {owners or slot.state}")
        return (
            f"all {self._num_slots} adapter slots are leased: {'; '.join(held)}. "
            "Release one, wait for a lease to end, or raise the engine's max_loras"
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


def _join(entry: _Entry, owner: str, expires_s: float | None) -> SlotLease:
    if entry.slot.state is not SlotState.LOADED:
        raise Conflict(f"{entry.slot.version} is {entry.slot.state} right now: try again", param="version")
    return _grant(entry, owner, expires_s)


def _grant(entry: _Entry, owner: str, expires_s: float | None) -> SlotLease:
    lease = SlotLease(entry.slot.version, owner, entry.slot.slot_id, expires_s)
    entry.leases[owner] = lease
    return lease


def _expiry(ttl_s: float | None, now_s: float) -> float | None:
    if ttl_s is None:
        return None
    if not ttl_s > 0:
        raise BadRequest(f"a lease of {ttl_s} s has ended before it began: give a positive ttl_s", param="ttl_s")
    return now_s + ttl_s
