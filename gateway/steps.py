"""The steps of a publish, timed for its answer and for `tandem_publish_seconds`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.metrics import Metrics
from gateway.types import StepTime


class StepClock:
    """Times the steps of one publish: verify, copy, stage, probe, flip, drain, retire."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start_s = time.perf_counter()
        self.steps: list[StepTime] = []

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        start_s = time.perf_counter()
        yield
        seconds = time.perf_counter() - start_s
        self.steps.append(StepTime(name, round(seconds, 4)))
        self._metrics.publish_seconds.labels(name).observe(seconds)

    def elapsed_s(self) -> float:
        return round(time.perf_counter() - self._start_s, 4)
