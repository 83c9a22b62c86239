"""A gateway that stops at a step of a publish: `python tests/support/stepping.py serve -c CONFIG`.

It is the gateway, with one wrapper around `StepClock.step`. A test arms a stop (`Stops.arm`), waits until the publish
stands there (`wait_reached`), does what it came for, and lets it go on (`let_go`). They meet in the files of one
directory, which the environment names.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

DIRECTORY_VARIABLE = "STEPPING_DIRECTORY"
STEPS = ("verify", "copy", "stage", "probe", "flip", "drain", "retire")
POLL_S = 0.01
ROOT = Path(__file__).resolve().parents[2]


class Stops:
    """Both ends of the agreement: the test's, and the gateway's (`hold`)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._armed, self._reached, self._go = (directory / name for name in ("armed", "reached", "go"))

    def command(self) -> tuple[str, ...]:
        return (sys.executable, str(Path(__file__).resolve()))

    def environment(self) -> dict[str, str]:
        return {DIRECTORY_VARIABLE: str(self.directory)}

    def arm(self, step: str, edge: str) -> None:
        """The next publish stops at `step`: at its `entry`, or at its `exit` with its work done."""
        self.clear()
        temporary = self.directory / "armed.tmp"
        temporary.write_text(f"{step}:{edge}")
        temporary.rename(self._armed)

    def wait_reached(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._reached.exists():
            assert time.monotonic() < deadline, f"no publish reached {self._armed.read_text()} within {timeout_s:g} s"
            time.sleep(POLL_S)

    def let_go(self) -> None:
        self._go.touch()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Whatever happens in the block, no publish stands at a stop for ever."""
        try:
            yield
        finally:
            self.let_go()

    def clear(self) -> None:
        """No stop is armed, and nobody stands at one."""
        for path in (self._armed, self._reached, self._go):
            path.unlink(missing_ok=True)

    async def hold(self, step: str, edge: str) -> None:
        """Stays here if this is where the test wants it, until it lets go."""
        if not self._is_armed(f"{step}:{edge}"):
            return
        self._armed.unlink()
        self._reached.touch()
        while not self._go.exists():  # noqa: ASYNC110  another process says it, by a file
            await asyncio.sleep(POLL_S)
        self.clear()

    def _is_armed(self, place: str) -> bool:
        return self._armed.exists() and self._armed.read_text() == place


def wrap_steps(stops: Stops) -> None:
    """From now on every step of a publish asks `stops` at its entry and at its exit."""
    from gateway.steps import StepClock

    original = StepClock.step

    @asynccontextmanager
    async def step(clock: Any, name: str, of: str = "") -> AsyncIterator[None]:
        async with original(clock, name, of):
            await stops.hold(name, "entry")
            yield
            await stops.hold(name, "exit")

    StepClock.step = step  # type: ignore[method-assign]


def main() -> None:
    # Not the folder of this file, which workers of Ray would inherit as a path to import from.
    sys.path[0] = str(ROOT)
    wrap_steps(Stops(Path(os.environ[DIRECTORY_VARIABLE])))
    from gateway.cli import main as tandem

    tandem()


if __name__ == "__main__":
    main()
