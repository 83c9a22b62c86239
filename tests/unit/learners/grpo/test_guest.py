"""A guest's manners: paused until the job has begun, and the slowest replica's users count."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from engines.types import UserLoad
from learners.grpo.guest import combine, keep_manners
from rollout.cap import AdaptiveCap, Observation

pytestmark = pytest.mark.timeout(10)
TIMEOUT_S = 5.0


@dataclass
class Status:
    users: UserLoad | None


@dataclass
class QuietReplica:
    """Without users."""

    name: str = "small/0"
    num_asked: int = 0

    async def status(self) -> Status:
        self.num_asked += 1
        return Status(UserLoad(None, None, 0, 0))


@dataclass
class Caps:
    """What the cap was set to; `wait_for` ends when it is set to a value."""

    seen: list[int] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, value: int) -> None:
        self.seen.append(value)
        self.changed.set()

    async def wait_for(self, value: int) -> None:
        while value not in self.seen:
            self.changed.clear()
            await self.changed.wait()


async def with_manners(
    replica: QuietReplica, caps: Caps, begun: asyncio.Event, work: Callable[[], Awaitable[None]]
) -> None:
    manners = asyncio.create_task(keep_manners([replica], AdaptiveCap(8, 1.15), caps.set, begun))  # type: ignore[list-item]
    try:
        await asyncio.wait_for(work(), TIMEOUT_S)
    finally:
        manners.cancel()
        with suppress(asyncio.CancelledError):
            await manners


async def test_nothing_is_sampled_or_measured_before_the_job_has_begun() -> None:
    replica, caps, begun = QuietReplica(), Caps(), asyncio.Event()

    async def work() -> None:
        await caps.wait_for(0)
        assert (caps.seen, replica.num_asked) == ([0], 0)
        begun.set()
        await caps.wait_for(8)

    await with_manners(replica, caps, begun, work)
    assert replica.num_asked >= 1


def test_the_slowest_replica_counts_and_one_without_users_does_not() -> None:
    loads = [UserLoad(0.1, 0.03, 1, 4), UserLoad(0.2, 0.01, 0, 2), UserLoad(9.0, 9.0, 0, 0)]
    assert combine(loads) == Observation(0.2, 0.03, 7)
    assert combine([UserLoad(None, None, 1, 0)]) == Observation(None, None, 1)
