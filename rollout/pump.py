"""The pump: samples beside the learning, in a thread of its own, as far ahead as the staleness rule allows."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from engines.errors import DeadlineExceeded, Internal
from engines.types import VersionName
from rollout.config import RolloutConfig
from rollout.flow import Buffered, Flow, Plan, PumpSnapshot, PumpStats, Taken
from rollout.types import Target
from rollout.worker import Worker

__all__ = ["Buffered", "Plan", "Pump", "PumpSnapshot", "PumpStats", "Taken"]

T = TypeVar("T")
CALL_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 15.0


class Pump:
    """May be called from any thread; its own thread runs between `start` and `stop`."""

    def __init__(
        self, workers: Sequence[Worker], plan: Plan, config: RolloutConfig, restored: PumpSnapshot | None = None
    ) -> None:
        self._flow = Flow(workers, plan, config, restored)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="pump", daemon=True)
        self._work: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Groups start once there is a version to `use`."""
        self._thread.start()

    def take(self, num_groups: int, timeout_s: float) -> Taken:
        """Waits for a step's groups, at most `groups_per_step`: fewer, or none, only when the schedule ends.

        Raises `DeadlineExceeded` saying what is missing and why, and what ended the sampling if a defect did.
        """
        if not self._thread.is_alive():
            raise Internal("the pump does not run; start() comes before take(), and nothing after stop()")
        future = asyncio.run_coroutine_threadsafe(self._flow.take(num_groups, timeout_s), self._loop)
        return _wait(future, timeout_s + CALL_TIMEOUT_S)

    def learned(self) -> None:
        """After each optimizer step: what is too old now is dropped, or cancelled, and sampled again."""
        self._call(self._flow.learned)

    def use(self, version: VersionName, targets: tuple[Target, ...]) -> None:
        """New groups are sampled by `version` from these replicas; none: nothing starts. Older versions are ignored."""
        self._call(lambda: self._flow.use(version, targets))

    def set_cap(self, max_running: int) -> None:
        """The most groups at once, within the configured bound; at 0 nothing new starts."""
        self._call(lambda: self._flow.set_cap(max_running))

    def in_use(self) -> frozenset[VersionName]:
        """The versions of running groups."""
        return self._call(self._flow.in_use)

    def stats(self) -> PumpStats:
        return self._call(self._flow.stats)

    def snapshot(self) -> PumpSnapshot:
        return self._call(self._flow.snapshot)

    def stop(self) -> None:
        """Cancels what runs. Raises `DeadlineExceeded` if a worker does not let go; the thread is a daemon."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._cancel)
            self._thread.join(STOP_TIMEOUT_S)
            if self._thread.is_alive():
                raise DeadlineExceeded(f"the pump did not stop within {STOP_TIMEOUT_S:g} s: a worker ignores its end")
        elif not self._loop.is_closed():
            self._loop.close()

    def _serve(self) -> None:
        """The loop outlives `run`, so that who waits hears of a defect; `stop` ends it."""
        asyncio.set_event_loop(self._loop)
        self._work = self._loop.create_task(self._flow.run())
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _cancel(self) -> None:
        self._loop.create_task(self._end())

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._loop.stop()

    def _call(self, function: Callable[[], T]) -> T:
        if not self._thread.is_alive():
            return function()

        async def call() -> T:
            return function()

        return _wait(asyncio.run_coroutine_threadsafe(call(), self._loop), CALL_TIMEOUT_S)


def _wait(future: concurrent.futures.Future[T], timeout_s: float) -> T:
    try:
        return future.result(timeout_s)
    except concurrent.futures.TimeoutError:
        if future.done():
            raise
        future.cancel()
        raise DeadlineExceeded(f"the pump's thread did not answer within {timeout_s:g} s") from None
