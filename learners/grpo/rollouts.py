"""The other half of the loop, as the learner sees it: groups come out, adapters go in, all beside the learning."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Sequence
from dataclasses import dataclass

from engines.errors import DeadlineExceeded
from engines.types import VersionName
from learners.cancel import CancelRequest
from learners.config import GrpoConfig
from learners.grpo.background import Background
from learners.grpo.delivery import Delivered, Delivery, Push
from learners.grpo.evaluation import CONCURRENCY, Evaluation, Examination
from learners.grpo.recorder import Recorder
from rollout.cap import AdaptiveCap
from rollout.pump import Pump, PumpSnapshot
from rollout.types import Group, Prompt
from rollout.worker import Worker

DELIVERY_TIMEOUT_S = 120.0
MARGIN_S = 30.0
LOOK_EVERY_S = 1.0
ASK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """The groups of one step, the ids of their rows, what was dropped, and how long the learner waited for them."""

    groups: tuple[Group, ...]
    rows: tuple[str, ...]
    dropped: tuple[str, ...]
    waited_s: float


class Rollouts:
    """Belongs to the main thread; the work goes on in `background` and in the pump's thread."""

    def __init__(
        self,
        config: GrpoConfig,
        pump: Pump,
        delivery: Delivery,
        workers: Sequence[Worker],
        background: Background,
        recorder: Recorder,
        cap: AdaptiveCap | None = None,
    ) -> None:
        """What `background` keeps goes on beside the loop, for ever: what ends it ends the run. `cap`: a guest's."""
        self._config = config
        self._pump = pump
        self._delivery = delivery
        self._workers = workers
        self._background = background
        self._recorder = recorder
        self._cap = cap
        self._sending: concurrent.futures.Future[Delivered] | None = None
        self._newest: VersionName | None = None
        self._idle_s = 0.0

    def deliver(self, push: Push) -> None:
        """The version to start from: waits until a replica serves it."""
        self._send(push)
        self.settle()
        self._idle_s = self._pump.stats().idle_s

    def take(self, request: CancelRequest) -> Batch:
        """Waits for a step's groups: none if the run is asked to end, or if the schedule has (rows were given up).

        Raises `DeadlineExceeded` saying what is missing, and whatever ended the sampling or the delivery.
        """
        rollout = self._config.rollout
        began_s = time.monotonic()
        deadline_s = began_s + rollout.max_attempts * (rollout.group_timeout_s + MARGIN_S)
        while not request.is_requested:
            self._background.check()
            try:
                taken = self._pump.take(self._config.prompts_per_step, LOOK_EVERY_S)
            except DeadlineExceeded as error:
                if time.monotonic() > deadline_s:
                    waited_s = time.monotonic() - began_s
                    raise DeadlineExceeded(
                        f"no step's groups came within {waited_s:.0f} s; at the last look, {error.message}"
                    ) from None
                continue
            rows = tuple(group.prompt.id for group in taken.groups)
            return Batch(taken.groups, rows, taken.dropped, time.monotonic() - began_s)
        return Batch((), (), (), time.monotonic() - began_s)

    def learned(self, push: Push) -> float:
        """Sends the step's adapter, once the one before has arrived; how long that one took, in seconds."""
        sync_s = self.settle()
        self._pump.learned()
        self._send(push)
        return sync_s

    def settle(self) -> float:
        """Waits until what was sent last is served; how long it took, in seconds."""
        if self._sending is None:
            return 0.0
        sending, self._sending = self._sending, None
        delivered = self._background.wait(sending, DELIVERY_TIMEOUT_S + MARGIN_S)
        self._newest = delivered.version
        self._recorder.on_push(delivered)
        return delivered.seconds

    def evaluate(self, step: int, rows: Sequence[Prompt]) -> Evaluation:
        """Greedy answers of the newest version; what was away meanwhile is waited for, until a deadline.

        Raises `Unavailable` if not one row could be scored.
        """
        rollout = self._config.rollout
        num_rounds = 1 + len(rows) // min(CONCURRENCY, rollout.max_running)
        deadline_s = time.monotonic() + rollout.group_timeout_s * num_rounds
        examination = Examination(rows)
        self._ask(examination, deadline_s)
        if examination.left and time.monotonic() + ASK_AGAIN_S < deadline_s:
            self._say_interrupted(step, examination, is_over=False)
        while examination.left and time.monotonic() + ASK_AGAIN_S < deadline_s:
            self._background.run(asyncio.sleep(ASK_AGAIN_S), MARGIN_S)
            self._ask(examination, deadline_s)
        if examination.left:
            self._say_interrupted(step, examination, is_over=True)
        return examination.result()

    def abandon(self) -> None:
        """What is being sent is not waited for any more: the run ends."""
        if self._sending is not None:
            self._sending.cancel()

    def snapshot(self) -> PumpSnapshot:
        return self._pump.snapshot()

    def take_engine_idle_s(self) -> float:
        """Seconds without a running group since this was asked last."""
        idle_s = self._pump.stats().idle_s
        since_s, self._idle_s = idle_s - self._idle_s, idle_s
        return since_s

    def _ask(self, examination: Examination, deadline_s: float) -> None:
        assert self._newest is not None  # noqa: S101  a version is delivered before the first step
        timeout_s = max(0.0, deadline_s - time.monotonic())
        targets = self._delivery.targets(self._newest)
        at_once = self._num_at_once()
        asking = examination.ask(self._workers, self._newest, targets, num_at_once=at_once, timeout_s=timeout_s)
        self._background.run(asking, timeout_s + MARGIN_S)

    def _num_at_once(self) -> int:
        """Rows of an evaluation: no more than groups may run now, but one at least."""
        most = min(CONCURRENCY, self._config.rollout.max_running)
        return most if self._cap is None else max(1, min(most, int(self._cap.value)))

    def _say_interrupted(self, step: int, examination: Examination, *, is_over: bool) -> None:
        self._recorder.on_evaluation_interrupted(step, len(examination.left), examination.reason, is_over=is_over)

    def _send(self, push: Push) -> None:
        self._sending = self._background.start(self._delivery.deliver(push, DELIVERY_TIMEOUT_S))
