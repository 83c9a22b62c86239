"""SIGTERM and SIGINT as a request: before and after training they end the run at once, in training after the step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Cancelled(BaseException):
    """Control flow, no error: unwinds a run that was asked to end."""


class CancelRequest:
    """Whether somebody asked the run to end."""

    def __init__(self) -> None:
        self.is_requested = False
        self._is_deferred = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `is_requested`, for the block to look at."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.is_requested = True
        if not self._is_deferred:
            raise Cancelled


@contextmanager
def listening() -> Iterator[CancelRequest]:
    """Handles the two signals until the block ends. In the main thread only."""
    request = CancelRequest()
    old = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
