"""The ledger of adapter slots, by examples."""

from __future__ import annotations

import pytest
from leasing import evicted, v

from engines.errors import BadRequest, Conflict, Internal, NoSlot, NotFound
from engines.ledger import AdapterLedger, LeasePlan, SlotState
from engines.types import VersionName


def held(ledger: AdapterLedger) -> list[VersionName]:
    return [slot.version for slot in ledger.slots()]


def load(
    ledger: AdapterLedger, owner: str, version: VersionName, ttl_s: float | None = None, now_s: float = 0.0
) -> LeasePlan:
    """What the actor does when the engine does its part."""
    plan = ledger.lease(owner, version, ttl_s, now_s)
    for slot in plan.evict:
        ledger.confirm_evicted(slot)
    ledger.commit(plan)
    return plan


def retire(ledger: AdapterLedger, version: VersionName, now_s: float = 0.0) -> None:
    slot = ledger.begin_eviction(version, now_s)
    assert slot is not None
    ledger.confirm_evicted(slot)


def test_one_version_has_one_slot_for_all_owners() -> None:
    ledger = AdapterLedger(1)
    first = load(ledger, "serving", v(1))
    second = load(ledger, "job", v(1))
    assert first.must_load
    assert not second.must_load
    assert first.slot_id == second.slot_id
    assert [lease.owner for lease in ledger.holders(v(1), 0)] == ["serving", "job"]


def test_full_ledger_names_the_holders_and_changes_nothing() -> None:
    ledger = AdapterLedger(2, reserved_for_rollout=1)
    load(ledger, "serving", v(1))
    load(ledger, "job-7", v(2), ttl_s=10)
    before = ledger.slots()
    with pytest.raises(NoSlot, match=r"vqa@1 by serving \(until released\); vqa@2 by job-7 \(for another 2 s\)"):
        ledger.lease("serving", v(3), None, 8.0)
    assert ledger.slots() == before


def test_expired_lease_keeps_its_adapter_until_the_slot_is_needed() -> None:
    ledger = AdapterLedger(2)
    load(ledger, "serving", v(1), ttl_s=10)
    assert evicted(load(ledger, "serving", v(2), now_s=100)) == []
    assert held(ledger) == [v(1), v(2)]
    assert evicted(load(ledger, "serving", v(3), now_s=100)) == [v(1)]
    assert held(ledger) == [v(2), v(3)]


def test_lease_ends_at_its_very_instant() -> None:
    ledger = AdapterLedger(1)
    load(ledger, "serving", v(1), ttl_s=10)
    with pytest.raises(NoSlot):
        ledger.lease("serving", v(2), None, 9.999)
    assert evicted(ledger.lease("serving", v(2), None, 10.0)) == [v(1)]


def test_oldest_unneeded_version_goes_first() -> None:
    ledger = AdapterLedger(3)
    for number in (1, 2, 3):
        load(ledger, "serving", v(number))
    ledger.release("serving", v(3))
    ledger.release("serving", v(2))
    assert evicted(ledger.lease("serving", v(4), None, 0)) == [v(2)]


def test_ids_are_never_reused() -> None:
    ledger = AdapterLedger(1)
    ids = []
    for _ in range(5):
        ids.append(load(ledger, "serving", v(1)).slot_id)
        ledger.release("serving", v(1))
        retire(ledger, v(1))
    assert ids == [1, 2, 3, 4, 5]


def test_ledger_of_the_next_engine_goes_on_counting() -> None:
    ledger = AdapterLedger(2, reserved_for_rollout=1)
    load(ledger, "serving", v(1))
    successor = ledger.successor()
    assert successor.slots() == ()
    assert load(successor, "serving", v(1)).slot_id == 2
    with pytest.raises(NoSlot, match="all 1 adapter slots for serving"):
        successor.lease("serving", v(2), None, 0)


def test_failed_load_costs_an_id_but_no_slot() -> None:
    ledger = AdapterLedger(1)
    plan = ledger.lease("serving", v(1), None, 0)
    ledger.undo(plan)
    assert ledger.slots() == ()
    assert load(ledger, "serving", v(2)).slot_id == plan.slot_id + 1


def test_undo_before_the_drop_keeps_the_version_that_was_to_go() -> None:
    ledger = AdapterLedger(1)
    load(ledger, "serving", v(1), ttl_s=1)
    ledger.undo(ledger.lease("serving", v(2), None, 5))
    assert [(slot.version, slot.state) for slot in ledger.slots()] == [(v(1), SlotState.LOADED)]
    assert ledger.renew("serving", v(1), 1, 5).slot_id == 1


def test_undo_after_the_drop_leaves_an_empty_slot() -> None:
    ledger = AdapterLedger(1)
    load(ledger, "serving", v(1), ttl_s=1)
    plan = ledger.lease("serving", v(2), None, 5)
    ledger.confirm_evicted(plan.evict[0])
    ledger.undo(plan)
    assert ledger.slots() == ()


def test_only_a_decided_eviction_can_end() -> None:
    ledger = AdapterLedger(1)
    load(ledger, "serving", v(1))
    with pytest.raises(Internal, match="no plan decided so"):
        ledger.confirm_evicted(ledger.slots()[0])
    assert held(ledger) == [v(1)]


def test_leased_version_cannot_be_taken_out() -> None:
    ledger = AdapterLedger(2, reserved_for_rollout=2)
    load(ledger, "job", v(1), ttl_s=10)
    with pytest.raises(Conflict, match="leased by job"):
        ledger.begin_eviction(v(1), 5)
    ledger.lease("job", v(2), None, 5)
    with pytest.raises(Conflict, match="vqa@2 is loading"):
        ledger.begin_eviction(v(2), 5)
    assert ledger.begin_eviction(v(3), 5) is None
    retire(ledger, v(1), now_s=10)
    assert held(ledger) == [v(2)]


def test_load_before_the_drop_is_a_defect() -> None:
    ledger = AdapterLedger(1)
    load(ledger, "serving", v(1), ttl_s=1)
    plan = ledger.lease("serving", v(2), None, 5)
    with pytest.raises(Internal, match="before vqa@1 was dropped"):
        ledger.commit(plan)


def test_plan_ends_once() -> None:
    ledger = AdapterLedger(1)
    plan = load(ledger, "serving", v(1))
    for end in (ledger.commit, ledger.undo):
        with pytest.raises(Internal, match="has ended already"):
            end(plan)


def test_version_on_its_way_in_or_out_cannot_be_joined() -> None:
    ledger = AdapterLedger(1)
    load(ledger, "serving", v(1), ttl_s=1)
    ledger.lease("serving", v(2), None, 5)
    with pytest.raises(Conflict, match="vqa@2 is loading"):
        ledger.lease("other", v(2), None, 5)
    with pytest.raises(Conflict, match="vqa@1 is evicting"):
        ledger.lease("serving", v(1), None, 5)
    with pytest.raises(NotFound, match="lease it again"):
        ledger.renew("serving", v(1), 10, 5)


def test_version_being_loaded_is_never_evicted() -> None:
    ledger = AdapterLedger(1)
    ledger.lease("serving", v(1), 1, 0)
    with pytest.raises(NoSlot, match="vqa@1 by loading"):
        ledger.lease("serving", v(2), None, 100)


def test_renewal_prolongs_one_owners_lease() -> None:
    ledger = AdapterLedger(3, reserved_for_rollout=1)
    load(ledger, "job", v(2), ttl_s=10)
    load(ledger, "other", v(2), ttl_s=10)
    assert ledger.renew("job", v(2), 10, 5).expires_s == 15
    assert [lease.owner for lease in ledger.leases(12)] == ["job"]


def test_expired_lease_can_be_renewed_while_its_slot_was_not_needed() -> None:
    ledger = AdapterLedger(1)
    load(ledger, "serving", v(1), ttl_s=10)
    assert ledger.holders(v(1), 20) == ()
    ledger.renew("serving", v(1), 10, 20)
    assert len(ledger.holders(v(1), 25)) == 1


def test_only_a_lease_can_be_renewed() -> None:
    ledger = AdapterLedger(1)
    load(ledger, "serving", v(1))
    for version in (v(1), v(2)):
        with pytest.raises(NotFound, match=f"job holds no lease of {version}"):
            ledger.renew("job", version, 10, 0)


def test_leasing_again_prolongs() -> None:
    ledger = AdapterLedger(1)
    load(ledger, "serving", v(1), ttl_s=10)
    plan = ledger.lease("serving", v(1), 10, 8)
    assert (plan.must_load, plan.lease.expires_s) == (False, 18)
    assert len(ledger.leases(9)) == 1


def test_release_tells_whether_anybody_is_left() -> None:
    ledger = AdapterLedger(1)
    load(ledger, "serving", v(1))
    load(ledger, "job", v(1))
    assert not ledger.release("serving", v(1))
    assert ledger.release("job", v(1))
    assert ledger.release("job", v(1))
    assert held(ledger) == [v(1)]
    assert not ledger.release("job", v(9))


def test_job_has_the_reserved_slots_and_no_others() -> None:
    ledger = AdapterLedger(3, reserved_for_rollout=1)
    load(ledger, "job-1", v(1))
    with pytest.raises(NoSlot, match="all 1 adapter slots reserved for rollouts are leased: vqa@1 by job-1"):
        ledger.lease("job-2", v(2), None, 0)
    assert held(ledger) == [v(1)]


def test_serving_has_all_slots_but_the_reserved() -> None:
    ledger = AdapterLedger(3, reserved_for_rollout=1)
    load(ledger, "serving", v(1))
    load(ledger, "serving", v(2))
    with pytest.raises(NoSlot, match="all 2 adapter slots for serving are leased"):
        ledger.lease("serving", v(3), None, 0)
    assert load(ledger, "job", v(3)).must_load


def test_without_reserved_slots_a_job_is_told_what_to_set() -> None:
    with pytest.raises(NoSlot, match=r"no adapter slots are reserved for rollouts: .*reserved_for_rollout"):
        AdapterLedger(3).lease("job", v(1), None, 0)


def test_guest_of_serving_needs_no_slot_and_leaves_with_it() -> None:
    ledger = AdapterLedger(1)
    load(ledger, "serving", v(1))
    assert ledger.lease("job", v(1), None, 0).lease.is_guest
    assert [lease.owner for lease in ledger.holders(v(1), 0)] == ["serving", "job"]
    ledger.release("serving", v(1))
    assert ledger.holders(v(1), 0) == ()
    assert evicted(load(ledger, "serving", v(2))) == [v(1)]
    with pytest.raises(NotFound, match="lease it again"):
        ledger.renew("job", v(1), None, 0)


def test_guest_gets_a_slot_of_its_own_when_there_is_one() -> None:
    ledger = AdapterLedger(2, reserved_for_rollout=1)
    load(ledger, "serving", v(1))
    load(ledger, "job", v(2), ttl_s=10)
    assert ledger.lease("job", v(1), 20, 0).lease.is_guest
    assert not ledger.renew("job", v(1), 20, 10).is_guest
    ledger.release("serving", v(1))
    assert len(ledger.holders(v(1), 10)) == 1


def test_serving_joins_a_jobs_version_only_within_its_own_slots() -> None:
    ledger = AdapterLedger(2, reserved_for_rollout=1)
    load(ledger, "job", v(1))
    load(ledger, "serving", v(2))
    with pytest.raises(NoSlot, match="for serving"):
        ledger.lease("serving", v(1), None, 0)
    ledger.release("serving", v(2))
    assert not ledger.lease("serving", v(1), None, 0).lease.is_guest


def test_expired_lease_cannot_be_renewed_once_its_quota_is_used_up() -> None:
    ledger = AdapterLedger(2, reserved_for_rollout=1)
    load(ledger, "job-1", v(1), ttl_s=10)
    load(ledger, "job-2", v(2), now_s=20)
    with pytest.raises(NotFound, match="lease it again"):
        ledger.renew("job-1", v(1), 10, 20)
    with pytest.raises(NoSlot, match="vqa@2 by job-2"):
        ledger.lease("job-1", v(1), 10, 20)
    assert held(ledger) == [v(1), v(2)], "nobody needed its slot yet"


def test_owner_that_dies_loses_its_own_leases_only() -> None:
    ledger = AdapterLedger(4, reserved_for_rollout=2)
    for version in (v(1), v(2)):
        load(ledger, "job-1", version, ttl_s=10)
    load(ledger, "job-2", v(2), ttl_s=30)
    load(ledger, "serving", v(3))
    assert [(lease.owner, lease.version) for lease in ledger.leases(20)] == [("job-2", v(2)), ("serving", v(3))]
    assert ledger.leased_by("job-1") == (v(1), v(2))


def test_base_needs_no_slot() -> None:
    with pytest.raises(BadRequest, match="needs no adapter slot"):
        AdapterLedger(1).lease("serving", VersionName("small", 0), None, 0)


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan")])
def test_lease_needs_a_future(ttl_s: float) -> None:
    with pytest.raises(BadRequest, match="positive ttl_s"):
        AdapterLedger(1).lease("serving", v(1), ttl_s, 0)


def test_ledger_needs_a_slot() -> None:
    with pytest.raises(BadRequest, match="at least one"):
        AdapterLedger(0)
    for reserved in (-1, 3):
        with pytest.raises(BadRequest, match="cannot be reserved"):
            AdapterLedger(2, reserved)
