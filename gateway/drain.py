"""Draining: nothing new is taken, what is under way goes on, and somebody waits for its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from engines.errors import Unavailable


class Drain:
    """Belongs to the event loop. `num_in_flight` counts completions, `num_publishes` promotes and rollbacks."""

    def __init__(self) -> None:
        self.is_draining = False
        self.num_in_flight = 0
        self.num_publishes = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_idle(self) -> bool:
        return self.num_in_flight == self.num_publishes == 0

    def begin(self) -> None:
        self.is_draining = True

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Around a completion."""
        self.num_in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_in_flight -= 1
            self._settle()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Around a publish, which ends before the process does. Raises `Unavailable` once the draining has begun."""
        if self.is_draining:
            raise Unavailable("This gateway is shutting down and begins no publish; ask again when it is back.")
        self.num_publishes += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_publishes -= 1
            self._settle()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Whether everything under way ended in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _settle(self) -> None:
        if self.is_idle:
            self._idle.set()
