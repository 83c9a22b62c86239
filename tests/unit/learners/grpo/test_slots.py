"""Whether a job's versions fit into an engine is asked before anything starts: into what others leave of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_delivery import ScriptedReplica

from engines.actor import ReplicaStatus
from engines.errors import BadRequest, NoSlot, Unavailable
from engines.ledger import SERVING, SlotLease
from engines.types import VersionName
from learners.grpo.replicas import check_slots

pytestmark = pytest.mark.timeout(20)


class LeasedReplica(ScriptedReplica):
    """Has `num_slots` for rollouts, and these leases."""

    def __init__(self, number: int, num_slots: int, *leases: SlotLease) -> None:
        super().__init__(number, num_slots)
        self._leases = leases

    async def status(self) -> ReplicaStatus:
        return replace(await super().status(), num_rollout_slots=self.num_slots, leases=self._leases)


def lease(owner: str, number: int, *, is_guest: bool = False) -> SlotLease:
    return SlotLease(VersionName(f"{owner}.1/step", number), owner, number, None, is_guest)


async def test_slots_of_ones_own_and_of_serving_and_of_guests_are_not_missed() -> None:
    leases = (lease("job", 1), lease(SERVING, 2), lease("other", 3, is_guest=True))
    await check_slots((LeasedReplica(0, 3, *leases),), "job", 3)


async def test_slots_that_another_job_holds_are_missed_and_its_name_is_said() -> None:
    with pytest.raises(NoSlot, match=r"needs 3 adapter slots .* on small/0, and of its 4 2 are taken by other"):
        await check_slots((LeasedReplica(0, 4, lease("other", 1), lease("other", 2)),), "job", 3)


async def test_too_few_slots_at_all_are_a_bad_setting() -> None:
    with pytest.raises(BadRequest, match="max_staleness: needs 3"):
        await check_slots((LeasedReplica(0, 2),), "job", 3)


async def test_a_replica_that_is_away_is_passed_over_unless_all_are() -> None:
    away, here = LeasedReplica(0, 0), LeasedReplica(1, 3)
    away.is_down = True
    await check_slots((away, here), "job", 3)
    with pytest.raises(Unavailable, match="none of small/0 answers"):
        await check_slots((away,), "job", 3)
