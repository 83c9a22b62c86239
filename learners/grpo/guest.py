"""A guest's manners: how many groups run at once follows what the engine's users see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from engines.errors import TandemError
from engines.replica import Replica
from engines.types import UserLoad
from rollout.cap import AdaptiveCap, Observation

LOOK_EVERY_S = 1.0


async def keep_manners(replicas: Sequence[Replica], cap: AdaptiveCap, set_cap: Callable[[int], None]) -> None:
    """Looks once a second, for ever. What cannot be asked now is no observation."""
    while True:
        loads = await asyncio.gather(*(_users_of(replica) for replica in replicas))
        set_cap(cap.observe(combine(load for load in loads if load is not None), time.monotonic()))
        await asyncio.sleep(LOOK_EVERY_S)


def combine(loads: Iterable[UserLoad]) -> Observation:
    """The slowest replica's users: none of them is to be hurt."""
    busy = [load for load in loads if load.num_requests or load.num_in_flight]
    times = [load.p95_ttft_s for load in busy if load.p95_ttft_s is not None]
    return Observation(max(times, default=None), sum(load.num_requests + load.num_in_flight for load in busy))


async def _users_of(replica: Replica) -> UserLoad | None:
    try:
        return (await replica.status()).users
    except TandemError:
        return None
