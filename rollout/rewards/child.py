"""The process that computes rewards: `python -m rollout.rewards.child`, its stdin a socket to the scorer.

Plain functions are called one after another on the main thread, async ones all at once on a loop of another thread.
What a function prints goes to stderr. It ends when the socket closes, and the kernel ends it where one call overstays.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

from engines.errors import BadRequest, TandemError
from rollout.config import RewardConfig
from rollout.rewards.base import Reward
from rollout.rewards.registry import make_rewards
from rollout.rewards.wire import (
    HEADER,
    Called,
    Calling,
    Job,
    Order,
    Ready,
    Refused,
    Reply,
    Setup,
    Valued,
    to_frame,
    to_order,
)

ALARM_GRACE_S = 5.0
"""After a call's deadline, the scorer kills us; this much later, where the scorer is gone, the kernel does."""
MAX_REASON_CHARS = 500


class Failed(Exception):
    """The function `key` gave no value."""

    def __init__(self, key: str, reason: str, *, is_transient: bool = False) -> None:
        super().__init__(reason)
        self.key = key
        self.reason = reason
        self.is_transient = is_transient

    @classmethod
    def by(cls, key: str, error: BaseException) -> Failed:
        if isinstance(error, TandemError):
            return cls(key, error.message[:MAX_REASON_CHARS], is_transient=error.retryable)
        return cls(key, f"{type(error).__name__}: {error}"[:MAX_REASON_CHARS])

    def to_reply(self, number: int) -> Valued:
        return Valued(number, {}, self.key, self.reason, self.is_transient)


@dataclass(frozen=True, slots=True)
class Channel:
    """The child's end of the socket; replies may come from both threads."""

    connection: socket.socket
    lock: threading.Lock

    @classmethod
    def of_stdin(cls) -> Channel:
        """Takes stdin's socket for itself: functions read nothing there, and print to stderr."""
        connection = socket.socket(fileno=os.dup(0))
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        return cls(connection, threading.Lock())

    def read(self) -> Order | None:
        """The next order; None once the scorer is gone."""
        header = self._read(HEADER.size)
        body = self._read(HEADER.unpack(header)[0]) if header else b""
        return to_order(body) if body else None

    def write(self, reply: Reply) -> None:
        with self.lock:
            self.connection.sendall(to_frame(reply))

    def _read(self, num_bytes: int) -> bytes:
        parts = bytearray()
        while len(parts) < num_bytes:
            part = self.connection.recv(min(num_bytes - len(parts), 1 << 20))
            if not part:
                return b""
            parts += part
        return bytes(parts)


class Worker:
    """Computes one job after another."""

    def __init__(self, channel: Channel, setup: Setup, functions: Sequence[Reward]) -> None:
        self._channel = channel
        self._timeout_s = setup.timeout_s
        self._rewards: Sequence[tuple[RewardConfig, Reward]] = tuple(zip(setup.rewards, functions, strict=True))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="async-rewards", daemon=True).start()

    def work(self, job: Job) -> None:
        """Calls every function; answers now, or once the async ones have ended."""
        results: dict[str, Any] = {}
        signal.setitimer(signal.ITIMER_REAL, self._timeout_s + ALARM_GRACE_S)
        try:
            self._call_all(job, results)
        except Failed as failed:
            _drop(results)
            self._channel.write(Called(job.number))
            self._channel.write(failed.to_reply(job.number))
            return
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self._channel.write(Called(job.number))
        asyncio.run_coroutine_threadsafe(self._finish(job.number, results), self._loop)

    def _call_all(self, job: Job, results: dict[str, Any]) -> None:
        prompt, trajectory = job.prompt, job.trajectory
        for config, function in self._rewards:
            self._channel.write(Calling(job.number, config.key))
            try:
                result = function(prompt, trajectory)
            except (Exception, SystemExit) as error:  # the boundary to functions that are not ours
                raise Failed.by(config.key, error) from error
            results[config.key] = result if inspect.isawaitable(result) else _to_value(config.key, result)

    async def _finish(self, number: int, results: dict[str, Any]) -> None:
        settled = await asyncio.gather(*(self._settle(key, result) for key, result in results.items()))
        failed = next((value for value in settled if isinstance(value, Failed)), None)
        if failed is not None:
            self._channel.write(failed.to_reply(number))
            return
        values = {key: value for key, value in zip(results, settled, strict=True) if isinstance(value, float)}
        self._channel.write(Valued(number, values))

    async def _settle(self, key: str, result: float | Awaitable[Any]) -> float | Failed:
        if isinstance(result, float):
            return result
        deadline = asyncio.timeout(self._timeout_s)
        try:
            async with deadline:
                return _to_value(key, await result)
        except Failed as failed:
            return failed
        except (Exception, SystemExit, asyncio.CancelledError) as error:  # the boundary to functions that are not ours
            if deadline.expired():
                return Failed(key, f"did not end within {self._timeout_s:g} s")
            return Failed.by(key, error)


def _drop(results: dict[str, Any]) -> None:
    for result in results.values():
        if inspect.iscoroutine(result):
            result.close()


def _to_value(key: str, result: Any) -> float:
    if isinstance(result, str | bytes):
        raise Failed(key, f"returned {result[:40]!r} instead of a number")
    try:
        value = float(result)
    except (TypeError, ValueError, OverflowError) as error:
        raise Failed(key, f"returned {type(result).__name__} instead of a number: {error}") from error
    if not math.isfinite(value):
        raise Failed(key, f"returned {value}, which is no finite number")
    return value


def main() -> int:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    channel = Channel.of_stdin()
    setup = channel.read()
    if not isinstance(setup, Setup):
        return 0
    try:
        functions = make_rewards(setup.rewards)
    except BadRequest as error:
        channel.write(Refused(error.message, error.param))
        return 0
    worker = Worker(channel, setup, functions)
    channel.write(Ready())
    while isinstance(job := channel.read(), Job):
        worker.work(job)
    os._exit(0)  # async functions that are under way have nobody to answer to


if __name__ == "__main__":
    sys.exit(main())
