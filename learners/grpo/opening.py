"""Opens what a GRPO run samples with, in order, and closes it in the other: Ray, engines, workers, pump, delivery."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from engines.adapter.base import BaseModel
from engines.errors import DeadlineExceeded, TandemError
from engines.own import OwnReplica
from engines.replica import Replica
from learners.config import GrpoConfig
from learners.grpo.background import Background
from learners.grpo.delivery import Delivery
from learners.grpo.guest import keep_manners
from learners.grpo.ray_watch import RayWatch
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
    """Raises what keeps a run from starting: no Ray, no such engine, too few slots.

    What ends anything that goes on beside the run ends the run where it waits; so does the end of Ray. What cannot be
    closed is an event, and changes nothing of how the run ends.
    """
    config = run.config
    watch = RayWatch(connect(config.rollout.ray_address))
    with ExitStack() as stack:
        background = stack.enter_context(Background("delivery"))
        background.keep(watch.watch())
        at_end = _AtEnd(stack, background, watch, recorder)
        replicas = _opened_replicas(run, background, at_end)
        background.run(check_slots(replicas, config.name, config.num_slots), CHECK_TIMEOUT_S)
        workers = start_workers(config.rollout, config.rewards)
        at_end.close("workers", lambda: _close_workers(workers))
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
        at_end.stop(pump)
        delivery = Delivery(
            replicas,
            owner=config.name,
            profile=base.profile,
            max_mismatch=config.max_mismatch,
            in_use=pump.in_use,
            use=pump.use,
        )
        at_end.close("delivery", delivery.close)
        cap = AdaptiveCap(config.rollout.max_running, config.rollout.users_factor) if config.rollout.is_guest else None
        _keep_beside(background, replicas, delivery, pump, cap)
        rollouts = Rollouts(config, pump, delivery, workers, background, recorder, cap)
        stack.callback(rollouts.abandon)
        yield rollouts


@dataclass(frozen=True, slots=True)
class _AtEnd:
    """What is closed when the run ends, which what cannot be closed does not change.

    Once Ray is gone there is nobody to ask, and what was made ends with it.
    """

    stack: ExitStack
    background: Background
    watch: RayWatch
    recorder: Recorder

    def close(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.stack.callback(lambda: None if self.watch.is_gone else self._close(name, work))

    def stop(self, pump: Pump) -> None:
        self.stack.callback(lambda: self._stop(pump))

    def _close(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            self.background.finish(work(), CLOSE_TIMEOUT_S)
        except TandemError as error:
            self.recorder.on_not_closed(name, error.message)

    def _stop(self, pump: Pump) -> None:
        try:
            pump.stop()
        except DeadlineExceeded as error:
            if not self.watch.is_gone:
                self.recorder.on_not_closed("pump", error.message)


def _keep_beside(
    background: Background, replicas: Sequence[Replica], delivery: Delivery, pump: Pump, cap: AdaptiveCap | None
) -> None:
    background.keep(_tend(delivery))
    for replica in replicas:
        if isinstance(replica, OwnReplica):
            background.keep(keep_alive(replica))
    if cap is not None:
        background.keep(keep_manners(replicas, cap, pump.set_cap, delivery.begun))


def _opened_replicas(run: Run[GrpoConfig], background: Background, at_end: _AtEnd) -> tuple[Replica, ...]:
    config = run.config.rollout
    opening = open_replicas(config, run.config.name, run.job.path / "logs")
    replicas = background.run(opening, _start_timeout_s(config))
    at_end.close("replicas", lambda: close_replicas(replicas))
    return replicas


def _start_timeout_s(config: RolloutConfig) -> float:
    return (config.own.start_timeout_s if config.own else 0.0) + START_MARGIN_S


async def _close_workers(workers: Sequence[RayWorker]) -> None:
    await asyncio.gather(*(worker.close() for worker in workers))


async def _tend(delivery: Delivery) -> None:
    while True:
        await asyncio.sleep(TEND_EVERY_S)
        await delivery.tend()
