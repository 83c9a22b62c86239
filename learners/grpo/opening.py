"""Opens what a GRPO run samples with, in order, and closes it in the other: Ray, engines, workers, pump, delivery."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from engines.adapter.base import BaseModel
from engines.own import OwnReplica
from engines.replica import Replica
from learners.config import GrpoConfig
from learners.grpo.background import Background
from learners.grpo.delivery import Delivery
from learners.grpo.guest import keep_manners
from learners.grpo.recorder import Recorder
from learners.grpo.replicas import check_slots, close_replicas, connect, keep_alive, open_replicas
from learners.grpo.rollouts import Rollouts
from learners.run import Run
from learners.schedule import Schedule
from rollout.cap import AdaptiveCap
from rollout.config import RolloutConfig
from rollout.pump import Plan, Pump, PumpSnapshot
from rollout.types import Prompt
from rollout.worker import RayWorker, start_workers

SLOTS_BESIDES_STALENESS = 2
"""The newest version, and the one on its way."""
TEND_EVERY_S = 2.0
CHECK_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 60.0
START_MARGIN_S = 60.0


@contextmanager
def opened_rollouts(
    run: Run[GrpoConfig],
    prompts: Sequence[Prompt],
    schedule: Schedule,
    base: BaseModel,
    recorder: Recorder,
    first_step: int,
    restored: PumpSnapshot | None,
) -> Iterator[Rollouts]:
    """Raises what keeps a run from starting: no Ray, no such engine, too few slots."""
    config = run.config
    connect(config.rollout.ray_address)
    with ExitStack() as stack:
        background = stack.enter_context(Background("delivery"))
        replicas = _opened_replicas(stack, run, background)
        background.run(check_slots(replicas, config.max_staleness + SLOTS_BESIDES_STALENESS), CHECK_TIMEOUT_S)
        workers = start_workers(config.rollout, config.rewards)
        stack.callback(lambda: background.run(_close_workers(workers), CLOSE_TIMEOUT_S))
        plan = Plan(
            prompts=prompts,
            order=schedule.order,
            group_size=config.group_size,
            groups_per_step=config.prompts_per_step,
            max_staleness=config.max_staleness,
            first_step=first_step,
        )
        pump = Pump(workers, plan, config.rollout, restored)
        pump.start()
        stack.callback(pump.stop)
        delivery = Delivery(
            replicas,
            owner=config.name,
            profile=base.profile,
            max_mismatch=config.max_mismatch,
            in_use=pump.in_use,
            use=pump.use,
        )
        stack.callback(lambda: background.run(delivery.close(), CLOSE_TIMEOUT_S))
        helpers = [background.start(_tend(delivery))]
        helpers += [background.start(keep_alive(one)) for one in replicas if isinstance(one, OwnReplica)]
        if config.rollout.is_guest:
            cap = AdaptiveCap(config.rollout.max_running, config.rollout.users_factor)
            helpers.append(background.start(keep_manners(replicas, cap, pump.set_cap)))
        yield Rollouts(config, pump, delivery, workers, background, recorder, helpers)


def _opened_replicas(stack: ExitStack, run: Run[GrpoConfig], background: Background) -> tuple[Replica, ...]:
    config = run.config.rollout
    opening = open_replicas(config, run.config.name, run.job.path / "logs")
    replicas = background.run(opening, _start_timeout_s(config))
    stack.callback(lambda: background.run(close_replicas(replicas), CLOSE_TIMEOUT_S))
    return replicas


def _start_timeout_s(config: RolloutConfig) -> float:
    return (config.own.start_timeout_s if config.own else 0.0) + START_MARGIN_S


async def _close_workers(workers: Sequence[RayWorker]) -> None:
    await asyncio.gather(*(worker.close() for worker in workers))


async def _tend(delivery: Delivery) -> None:
    while True:
        await asyncio.sleep(TEND_EVERY_S)
        await delivery.tend()
