"""Versions and plans as the tests of the ledger name them."""

from __future__ import annotations

from engines.ledger import LeasePlan
from engines.types import VersionName


def v(number: int) -> VersionName:
    return VersionName("vqa", number)


def evicted(plan: LeasePlan) -> list[VersionName]:
    return [slot.version for slot in plan.evict]
