"""The steps of a publish or a release, timed for its answer and for `tandem_publish_seconds`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.metrics import Metrics
from gateway.types import StepTime


class StepClock:
    """Times the steps of one publish (verify, copy, stage, probe, flip, drain, retire) or release (start, probe, flip,
    drain). `now` is the one under way."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start_s = time.perf_counter()
        self.now = ""
        self.steps: list[StepTime] = []

    @asynccontextmanager
    async def step(self, name: str, of: str = "") -> AsyncIterator[None]:
        """`of`: the replica, where each has the step to itself."""
        start_s = time.perf_counter()
        self.now = f"{name} {of}".strip()
        yield
        seconds = time.perf_counter() - start_s
        self.steps.append(StepTime(self.now, round(seconds, 4)))
        self.now = ""
        self._metrics.publish_seconds.labels(name).observe(seconds)

    def elapsed_s(self) -> float:
        return round(time.perf_counter() - self._start_s, 4)
