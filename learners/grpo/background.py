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
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._kept: list[concurrent.futures.Future[None]] = []

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

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Goes on beside, for ever: an error of it is raised by `check`, and by `wait` and `run` at once."""
        self._kept.append(self.start(work))

    def check(self) -> None:
        """Raises what ended something that is kept."""
        for one in self._kept:
            if one.done():
                one.result()

    def wait(self, future: concurrent.futures.Future[T], timeout_s: float) -> T:
        """Raises what the work or something kept raised, or `DeadlineExceeded`; the work is cancelled then."""
        watched: list[concurrent.futures.Future[Any]] = [future, *self._kept]
        done, _ = concurrent.futures.wait(watched, timeout_s, concurrent.futures.FIRST_COMPLETED)
        if future in done:
            return future.result()
        future.cancel()
        self.check()
        raise DeadlineExceeded(f"work in the background did not end within {timeout_s:.0f} s")

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        return self.wait(self.start(work), timeout_s)

    def finish(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """As `run`, whatever has ended what was kept: for what is closed at the end."""
        future = self.start(work)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            if future.done():  # it raised a TimeoutError of its own
                raise
            future.cancel()
            raise DeadlineExceeded(f"the end of the run took more than {timeout_s:.0f} s") from None

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._loop.stop()
