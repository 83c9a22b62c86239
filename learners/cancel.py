"""SIGTERM and SIGINT as a request to end.

A run that is `interruptible` ends at once; elsewhere the request waits until somebody looks at it. So what must be
done whole (the start of a job, a training step, the result) is, whatever signals come.
"""

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
        self._is_interruptible = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, the first signal raises `Cancelled`; so does entering after one. Later signals change nothing."""
        with self._set(True):
            if self.is_requested:
                raise Cancelled
            yield

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `is_requested`, for the block to look at."""
        with self._set(False):
            yield

    def handle(self, number: int, frame: FrameType | None) -> None:
        is_first = not self.is_requested
        self.is_requested = True
        if is_first and self._is_interruptible:
            raise Cancelled

    @contextmanager
    def _set(self, is_interruptible: bool) -> Iterator[None]:
        before, self._is_interruptible = self._is_interruptible, is_interruptible
        try:
            yield
        finally:
            self._is_interruptible = before


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Around what handles signals its own way, by ending the process, as `ray.init` does: it does so only meanwhile.

    Raises `Cancelled` if a signal came then. In the main thread only.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except SystemExit:
        raise Cancelled from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def listening() -> Iterator[CancelRequest]:
    """Handles the two signals, deferred, until the block ends. In the main thread only."""
    request = CancelRequest()
    old = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
