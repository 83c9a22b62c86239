"""A guest's manners: how many groups run at once follows what the engine's users see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from engines.errors import TandemError
from engines.replica import Replica
from engines.types import UserLoad
from rollout.cap import AdaptiveCap, Observation, at_once

LOOK_EVERY_S = 1.0
PACE_S = 0.25


async def keep_manners(
    replicas: Sequence[Replica], cap: AdaptiveCap, set_cap: Callable[[int], None], begun: asyncio.Event
) -> None:
    """Looks once a second, for ever. What cannot be asked now is no observation.

    Nothing is sampled, and users' latency is not taken for theirs alone, until the job has `begun`: loading the first
    version compiles kernels, which users feel.
    """
    set_cap(0)
    await begun.wait()
    while True:
        loads = await asyncio.gather(*(_users_of(replica) for replica in replicas))
        cap.observe(combine(load for load in loads if load is not None), time.monotonic())
        await _pace(cap.value, set_cap)


def combine(loads: Iterable[UserLoad]) -> Observation:
    """The slowest replica's users: none of them is to be hurt."""
    busy = [load for load in loads if load.num_requests or load.num_in_flight]
    return Observation(
        p95_ttft_s=_slowest(load.p95_ttft_s for load in busy),
        p95_itl_s=_slowest(load.p95_itl_s for load in busy),
        num_requests=sum(load.num_requests + load.num_in_flight for load in busy),
    )


def _slowest(seconds: Iterable[float | None]) -> float | None:
    return max((one for one in seconds if one is not None), default=None)


async def _pace(value: float, set_cap: Callable[[int], None]) -> None:
    """Until the next look."""
    until_s = time.monotonic() + LOOK_EVERY_S
    while (now_s := time.monotonic()) < until_s:
        set_cap(at_once(value, now_s))
        await asyncio.sleep(PACE_S)


async def _users_of(replica: Replica) -> UserLoad | None:
    try:
        return (await replica.status()).users
    except TandemError:
        return None
