"""An asyncio loop in a thread of its own: what goes on while the main thread computes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from engines.errors import DeadlineExceeded

T = TypeVar("T")
CLOSE_TIMEOUT_S = 10.0


class Background:
    """Runs coroutines. Use as a context manager: at its end what still runs is cancelled."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.start(self._cancel_all())
        self._thread.join(CLOSE_TIMEOUT_S)

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Waits for the answer. Raises what `work` raises, or `DeadlineExceeded`."""
        return wait_for(self.start(work), timeout_s)

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._loop.stop()


def wait_for(future: concurrent.futures.Future[T], timeout_s: float) -> T:
    """Raises what the work raised, or `DeadlineExceeded`, which cancels it."""
    try:
        return future.result(timeout_s)
    except concurrent.futures.TimeoutError:
        if future.done():  # it raised a TimeoutError of its own
            raise
        future.cancel()
        raise DeadlineExceeded(f"work in the background did not end within {timeout_s:.0f} s") from None
