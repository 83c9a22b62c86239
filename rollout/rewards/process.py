"""One life of the child process that computes rewards, seen from the scorer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from engines.errors import BadRequest, Unavailable
from rollout.config import RewardConfig
from rollout.rewards.wire import HEADER, Called, Calling, Job, Ready, Refused, Reply, Setup, Valued, to_frame, to_reply

START_TIMEOUT_S = 60.0


class ChildDied(Exception):
    """The process ended before it answered."""


@dataclass(slots=True)
class Asked:
    """A job that the child has: `key` is the function it called last."""

    called: asyncio.Future[None]
    answered: asyncio.Future[Valued]
    key: str = ""

    def fail(self, error: Exception) -> None:
        for future in (self.called, self.answered):
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever left does not have to hear of it


class RewardProcess:
    """Started by `start`; `kill` is final. Create and use it on one event loop."""

    def __init__(
        self, popen: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._popen = popen
        self._reader = reader
        self._writer = writer
        self._asked: dict[int, Asked] = {}
        self._listening: asyncio.Task[None] | None = None
        self.is_alive = True

    @property
    def pid(self) -> int:
        return self._popen.pid

    @classmethod
    async def start(cls, rewards: Sequence[RewardConfig], timeout_s: float) -> RewardProcess:
        """Spawns, and waits until the functions are made.

        Raises `BadRequest` if they cannot be, `Unavailable` if the process dies or is not ready in time.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            popen = _spawn(theirs)
        try:
            child = cls(popen, *await asyncio.open_connection(sock=ours))
        except BaseException:
            ours.close()
            _kill(popen)
            raise
        try:
            await child._set_up(Setup(tuple(rewards), timeout_s))
        except BaseException:
            await child.kill()
            raise
        return child

    async def _set_up(self, setup: Setup) -> None:
        try:
            self._writer.write(to_frame(setup))
            async with asyncio.timeout(START_TIMEOUT_S):
                reply = await self._read()
        except TimeoutError as error:
            raise Unavailable(
                f"the process that computes rewards was not ready within {START_TIMEOUT_S:.0f} s; see what the modules "
                "of own rewards do when they are imported"
            ) from error
        except (ChildDied, ConnectionError) as error:
            raise Unavailable(
                "the process that computes rewards ended while it started; its stderr says why"
            ) from error
        if isinstance(reply, Refused):
            raise BadRequest(reply.message, param=reply.param)
        if not isinstance(reply, Ready):
            raise Unavailable(f"the process that computes rewards began with {type(reply).__name__}; start it again")
        self._listening = asyncio.create_task(self._listen())

    def ask(self, job: Job) -> Asked:
        """Sends a job; both futures of what is returned fail with `ChildDied` if the process ends.

        Raises `BadRequest` if the job cannot be sent.
        """
        loop = asyncio.get_running_loop()
        asked = Asked(loop.create_future(), loop.create_future())
        frame = to_frame(job)
        if self.is_alive:
            self._asked[job.number] = asked
            self._writer.write(frame)
        else:
            asked.fail(ChildDied())
        return asked

    def forget(self, number: int) -> None:
        """Nobody waits for that job's answer any more."""
        self._asked.pop(number, None)

    async def kill(self) -> None:
        """SIGKILL to it and what it spawned; whoever waits for it is told. Safe to call twice."""
        _kill(self._popen)
        self._died()
        self._writer.close()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        await asyncio.to_thread(self._popen.wait)

    async def _listen(self) -> None:
        try:
            while True:
                self._take(await self._read())
        except ChildDied:
            self._died()

    def _take(self, reply: Reply) -> None:
        if isinstance(reply, Ready | Refused):
            return
        asked = self._asked.get(reply.number)
        if asked is None:
            return
        match reply:
            case Calling(key=key):
                asked.key = key
            case Called() if not asked.called.done():
                asked.called.set_result(None)
            case Valued() if not asked.answered.done():
                asked.answered.set_result(reply)

    def _died(self) -> None:
        self.is_alive = False
        for asked in self._asked.values():
            asked.fail(ChildDied())
        self._asked.clear()

    async def _read(self) -> Reply:
        try:
            header = await self._reader.readexactly(HEADER.size)
            return to_reply(await self._reader.readexactly(HEADER.unpack(header)[0]))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ChildDied from error


def _spawn(connection: socket.socket) -> subprocess.Popen[bytes]:
    """-P and our own search path: the child finds the modules that we find, wherever it stands."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    try:
        return subprocess.Popen(
            (sys.executable, "-P", "-m", "rollout.rewards.child"),
            stdin=connection.fileno(),
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(
            f"the process that computes rewards could not be spawned ({error.strerror}); check the machine's limits"
        ) from error


def _kill(popen: subprocess.Popen[bytes]) -> None:
    if popen.returncode is not None:
        return  # reaped: the group's id may be another's
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(popen.pid, signal.SIGKILL)
