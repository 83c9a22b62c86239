"""The ledger of adapter slots under a machine that leases, fails, renews and lets time pass at random."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from leasing import evicted, v

from engines.errors import Conflict, NoSlot, NotFound
from engines.ledger import SERVING, AdapterLedger, LeasePlan, SlotState
from engines.types import VersionName

owners = st.sampled_from(["serving", "job-1", "job-2"])
versions = st.integers(1, 4).map(v)  # few, so that owners meet on them
ttls = st.none() | st.integers(1, 20).map(float)


class LedgerMachine(RuleBasedStateMachine):
    """Random actors around one ledger, with several plans open at once. `engine` is what an engine would hold."""

    @initialize(num_slots=st.integers(1, 4), data=st.data())
    def begin(self, num_slots: int, data: st.DataObject) -> None:
        self.num_slots = num_slots
        self.num_reserved = data.draw(st.integers(0, num_slots))
        self.ledger = AdapterLedger(num_slots, self.num_reserved)
        self.now_s = 0.0
        self.open: list[LeasePlan] = []
        self.engine: set[VersionName] = set()
        self.ids: list[int] = []

    @rule(owner=owners, version=versions, ttl_s=ttls)
    def load(self, owner: str, version: VersionName, ttl_s: float | None) -> None:
        num_open = len(self.open)
        self.lease(owner, version, ttl_s)
        if len(self.open) > num_open:
            self.finish(self.open.pop(), load_succeeds=True)

    @rule(owner=owners, version=versions, ttl_s=ttls)
    def begin_to_load(self, owner: str, version: VersionName, ttl_s: float | None) -> None:
        self.lease(owner, version, ttl_s)

    def lease(self, owner: str, version: VersionName, ttl_s: float | None) -> None:
        live = {slot.version for slot in self.ledger.slots() if self.ledger.holders(slot.version, self.now_s)}
        before = self.ledger.slots(), self.ledger.leases(self.now_s)
        try:
            plan = self.ledger.lease(owner, version, ttl_s, self.now_s)
        except Conflict:
            assert (self.ledger.slots(), self.ledger.leases(self.now_s)) == before
            return
        except NoSlot:
            assert (self.ledger.slots(), self.ledger.leases(self.now_s)) == before
            assert len(self.taken_by(owner)) == self.size_for(owner), "refused with room in the owner's own slots"
            return
        assert not live & set(evicted(plan)), "a live lease was evicted"
        if not plan.must_load:
            assert version in self.engine
            return
        assert version not in self.engine
        self.ids.append(plan.slot_id)
        self.open.append(plan)

    @rule(data=st.data(), load_succeeds=st.booleans())
    def carry_out(self, data: st.DataObject, load_succeeds: bool) -> None:
        if not self.open:
            return
        self.finish(self.open.pop(data.draw(st.integers(0, len(self.open) - 1))), load_succeeds)

    def finish(self, plan: LeasePlan, load_succeeds: bool) -> None:
        for slot in plan.evict:
            self.engine.remove(slot.version)
            self.ledger.confirm_evicted(slot)
        if load_succeeds:
            self.engine.add(plan.version)
            self.ledger.commit(plan)
        else:
            self.ledger.undo(plan)

    @rule(data=st.data())
    def fail_to_drop(self, data: st.DataObject) -> None:
        if self.open:
            self.ledger.undo(self.open.pop(data.draw(st.integers(0, len(self.open) - 1))))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if leases := self.ledger.leases(self.now_s):
            lease = data.draw(st.sampled_from(leases))
            self.ledger.release(lease.owner, lease.version)

    @rule(data=st.data(), ttl_s=ttls)
    def lease_what_another_has(self, data: st.DataObject, ttl_s: float | None) -> None:
        if leases := self.ledger.leases(self.now_s):
            self.lease(data.draw(owners), data.draw(st.sampled_from(leases)).version, ttl_s)

    @rule(version=versions)
    def retire(self, version: VersionName) -> None:
        was_live = bool(self.ledger.holders(version, self.now_s))
        try:
            slot = self.ledger.begin_eviction(version, self.now_s)
        except Conflict:
            return
        assert not was_live
        if slot is None:
            return
        self.engine.remove(version)
        self.ledger.confirm_evicted(slot)

    @rule(owner=owners, version=versions, ttl_s=ttls)
    def renew(self, owner: str, version: VersionName, ttl_s: float | None) -> None:
        try:
            lease = self.ledger.renew(owner, version, ttl_s, self.now_s)
        except NotFound:
            return
        assert lease in self.ledger.holders(version, self.now_s)

    @rule(seconds=st.integers(1, 30))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds

    def size_for(self, owner: str) -> int:
        return self.num_slots - self.num_reserved if owner == SERVING else self.num_reserved

    def taken_by(self, owner: str) -> set[VersionName]:
        """What uses up slots of the owner's quota: live leases that are no guest's, and what is being loaded."""
        loading = {plan.lease for plan in self.open}
        leases = {lease for lease in self.ledger.leases(self.now_s) if not lease.is_guest} | loading
        return {lease.version for lease in leases if (lease.owner == SERVING) == (owner == SERVING)}

    @invariant()
    def nobody_takes_anothers_slots(self) -> None:
        for owner in (SERVING, "job-1"):
            assert len(self.taken_by(owner)) <= self.size_for(owner)

    @invariant()
    def guests_are_where_serving_is(self) -> None:
        leases = self.ledger.leases(self.now_s)
        served = {lease.version for lease in leases if lease.owner == SERVING}
        assert {lease.version for lease in leases if lease.is_guest} <= served

    @invariant()
    def engine_never_overflows(self) -> None:
        assert len(self.engine) <= self.num_slots

    @invariant()
    def ids_grow(self) -> None:
        assert self.ids == sorted(set(self.ids))

    @invariant()
    def ledger_knows_what_the_engine_holds(self) -> None:
        settled = {slot.version for slot in self.ledger.slots() if slot.state is not SlotState.LOADING}
        assert settled == self.engine


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
