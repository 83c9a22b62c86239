from __future__ import annotations

import asyncio
import threading

import pytest

from engines.errors import DeadlineExceeded, Unavailable
from learners.grpo.background import Background

pytestmark = pytest.mark.timeout(20)
LONG_S = 15.0


async def never() -> None:
    await asyncio.Event().wait()


async def fail_after(event: asyncio.Event) -> None:
    await event.wait()
    raise Unavailable("what is kept has failed")


def test_at_its_end_what_runs_is_cancelled_and_its_loop_is_closed() -> None:
    with Background("test") as background:
        running = background.start(never())
    assert running.cancelled()
    assert background._loop.is_closed()
    assert "test" not in [thread.name for thread in threading.enumerate()]


def test_what_does_not_end_in_time_is_cancelled() -> None:
    with Background("test") as background:
        running = background.start(never())
        with pytest.raises(DeadlineExceeded, match="did not end within"):
            background.wait(running, 0.05)
        assert running.cancelled()


def test_who_waits_hears_at_once_of_the_end_of_what_is_kept() -> None:
    with Background("test") as background:
        failing = asyncio.Event()
        background.keep(fail_after(failing))
        background.check()
        background._loop.call_soon_threadsafe(failing.set)
        with pytest.raises(Unavailable, match="what is kept has failed"):
            background.run(never(), LONG_S)
        with pytest.raises(Unavailable, match="what is kept has failed"):
            background.check()
        assert background.finish(asyncio.sleep(0, "closed"), LONG_S) == "closed"


def test_work_that_has_ended_is_answered_whatever_is_kept() -> None:
    with Background("test") as background:
        background.keep(never())
        assert background.run(asyncio.sleep(0, "done"), LONG_S) == "done"
        with pytest.raises(TimeoutError, match="its own"):
            background.run(raising(TimeoutError("its own")), LONG_S)


async def raising(error: Exception) -> None:
    raise error
