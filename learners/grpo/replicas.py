"""The engines that a job samples from: serving ones as a guest, or its own, which end with it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from engines.actor import ReplicaStatus
from engines.actor_name import NAMESPACE
from engines.attached import find_replicas
from engines.errors import BadRequest, EngineDown, NoSlot, TandemError, Unavailable
from engines.ledger import SERVING
from engines.own import OwnReplica
from engines.ray_head import RayPeer, find_head, find_node
from engines.replica import Replica
from engines.types import EngineState, VersionName
from learners.cancel import keeping_handlers
from rollout.config import RolloutConfig

LOOK_EVERY_S = 2.0
OWN_RAY = "local"
"""Ray's word for a cluster that is started for this process, whatever RAY_ADDRESS says and whoever else runs one."""
SUBMITTED_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""By it `ray job submit` has its cluster's workers run in the directory that it copied, which another Ray has not."""
_MAY_START = frozenset({EngineState.NEW, EngineState.STOPPED, EngineState.FAILED})


def connect(address: str) -> tuple[RayPeer, ...]:
    """To the Ray that the job runs on: what of it the job cannot do without.

    Raises `Unavailable`, and `Cancelled` if the run was asked to end meanwhile. In the main thread only.
    """
    import ray

    if not address:
        os.environ.pop(SUBMITTED_VARIABLE, None)
    try:
        if not ray.is_initialized():
            with keeping_handlers():
                ray.init(address=address or OWN_RAY, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
        return find_head(), find_node()
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise Unavailable(
            f"no Ray cluster answers at '{address}': start one with `tandem serve` or `ray start --head`, or set "
            'rollout.ray_address = "" to have one started for the job',
            param="rollout.ray_address",
        ) from error


async def open_replicas(config: RolloutConfig, job: str, log_dir: Path) -> tuple[Replica, ...]:
    """Finds the serving replicas, or starts engines. Raises `NotFound`, `BadRequest` or what a start raises."""
    if config.own is None:
        return await asyncio.to_thread(find_replicas, config.engine, config.installation)
    own = tuple(OwnReplica(job, number, config.own, log_dir) for number in range(config.own.replicas))
    await asyncio.gather(*(replica.start() for replica in own))
    return own


async def keep_alive(replica: OwnReplica) -> None:
    """Starts the engine anew, for ever, whenever it or its actor has ended; the delivery brings it what it needs."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            status = await replica.status()
            if status.health.state in _MAY_START:
                await replica.start()
        except EngineDown:
            with suppress(TandemError):  # the next look tries again
                await replica.revive()
        except TandemError:
            continue


async def close_replicas(replicas: Sequence[Replica]) -> None:
    """Ends the engines that are the job's own."""
    await asyncio.gather(*(replica.stop() for replica in replicas if isinstance(replica, OwnReplica)))


async def check_slots(replicas: Sequence[Replica], job: str, num_needed: int) -> None:
    """Before anything starts: whether each replica that answers can hold that many versions of the job.

    Raises `BadRequest` naming the setting to raise, `NoSlot` naming who holds what is missing, `Unavailable` if no
    replica answers.
    """
    statuses = await asyncio.gather(*(replica.status() for replica in replicas), return_exceptions=True)
    known = [
        (replica, status)
        for replica, status in zip(replicas, statuses, strict=True)
        if not isinstance(status, BaseException)
    ]
    if not known:
        raise Unavailable(f"none of {', '.join(replica.name for replica in replicas)} answers: look at `tandem status`")
    for replica, status in known:
        if status.num_rollout_slots < num_needed:
            raise BadRequest(
                f"max_staleness: needs {num_needed} adapter slots for rollouts on {replica.name}, which has "
                f"{status.num_rollout_slots}: lower max_staleness, or raise the engine's reserved_for_rollout "
                "(and max_loras by as much)",
                param="max_staleness",
            )
        others = _held_by_others(status, job)
        if status.num_rollout_slots - len(others) < num_needed:
            raise NoSlot(
                f"the job needs {num_needed} adapter slots for rollouts on {replica.name}, and of its "
                f"{status.num_rollout_slots} {len(others)} are taken by {', '.join(sorted({*others.values()}))}: wait "
                "for the end of that, or raise the engine's reserved_for_rollout (and max_loras by as much)"
            )


def _held_by_others(status: ReplicaStatus, job: str) -> dict[VersionName, str]:
    """Versions that take slots of rollouts, each with the other job that leases it."""
    leases = (lease for lease in status.leases if lease.owner not in (SERVING, job) and not lease.is_guest)
    return {lease.version: lease.owner for lease in leases}
