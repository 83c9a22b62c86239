"""A server as a supervised child: spawn, wait until it answers, watch, end it with all that it spawned."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from engines import lifeline
from engines.errors import EngineDown

LOG_LINES = 20
LOG_BYTES = 16384
KILL_TIMEOUT_S = 10.0
KILL_POLL_S = 0.005
_TCP_LISTEN = "0A"


def free_port() -> int:
    """A loopback port that was free a moment ago. Somebody else may take it first: see `ServerProcess.listens`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def new_token() -> str:
    """A random secret for one process: 256 bits, URL-safe text."""
    return secrets.token_urlsafe(32)


def log_tail(path: Path, noise: re.Pattern[str] | None = None, start: int = 0) -> str:
    """The last lines of a log from byte `start` on that are not `noise`, or a word on why there are none."""
    try:
        with path.open("rb") as log:
            log.seek(max(start, log.seek(0, os.SEEK_END) - LOG_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return "(no log was written)"
    said = [line for line in lines if noise is None or not noise.search(line)]
    return "\n".join(said[-LOG_LINES:]) or "(the log is empty)"


def _listening_sockets(port: int) -> frozenset[str]:
    """Inodes of the sockets that listen on 127.0.0.1:`port` or on all of IPv4 (proc(5), /proc/net/tcp)."""
    addresses = (f"0100007F:{port:04X}", f"00000000:{port:04X}")
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return frozenset(f"socket:[{row[9]}]" for row in rows if row[1] in addresses and row[3] == _TCP_LISTEN)


def _sockets_of(pids: Sequence[int]) -> frozenset[str]:
    """What the open descriptors of these processes are, as /proc names it."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended while we looked
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):  # closed meanwhile
                    found.add(os.readlink(descriptor))
    return frozenset(found)


class ServerProcess:
    """One run of one command, as a process group of its own that cannot outlive us.

    Create and use it on one event loop. `log_path` gets both output streams, appended.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        log_path: Path,
        *,
        name: str = "server",
        noise: re.Pattern[str] | None = None,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._noise = noise
        self._command = tuple(command)
        self._env = dict(env)
        self._log_start = 0
        self._exited = asyncio.Event()
        self._popen: subprocess.Popen[bytes] | None = None
        self._lifeline_fd: int | None = None
        self._exit_callbacks: list[Callable[[int], None]] = []

    @property
    def group(self) -> int:
        """The process group's id; raises `EngineDown` before `start`."""
        if self._popen is None:
            raise EngineDown(f"{self.name} was never started; start it first")
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; else its code, negative for a signal that hit the whole group."""
        return self._popen.returncode if self._popen is not None and self._exited.is_set() else None

    @property
    def is_running(self) -> bool:
        return self._popen is not None and not self._exited.is_set()

    def start(self) -> None:
        """Spawns; raises `EngineDown` if the supervising process cannot be started."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        # -I: our folder's types.py must not shadow the standard library's; -S: without site it starts faster.
        command = (sys.executable, "-I", "-S", lifeline.__file__, "--", *self._command)
        read_fd, write_fd = os.pipe()
        try:
            with self.log_path.open("ab") as log:
                self._log_start = log.tell()
                self._popen = subprocess.Popen(
                    command, stdin=read_fd, stdout=log, stderr=log, env=self._env, start_new_session=True
                )
        except OSError as error:
            os.close(write_fd)
            raise EngineDown(
                f"{self.name} could not be spawned ({error.strerror}); check its command and the machine's limits"
            ) from error
        finally:
            os.close(read_fd)
        self._lifeline_fd = write_fd
        loop = asyncio.get_running_loop()
        # A thread of our own: the loop may not be on the main thread, where child watchers want to be.
        threading.Thread(target=self._reap, args=(self._popen, loop), name=f"{self.name}-reaper", daemon=True).start()

    def on_exit(self, callback: Callable[[int], None]) -> None:
        """Calls `callback(exit_code)` on the event loop once it ends, also when `stop` ended it."""
        self._exit_callbacks.append(callback)

    async def wait_exit(self) -> int:
        """Waits until it has ended and returns the exit code."""
        await self._exited.wait()
        code = self.exit_code
        return 0 if code is None else code

    def listens(self, port: int) -> bool:
        """Whether all that listens on 127.0.0.1:`port` is of our group: what is sent there reaches nobody else."""
        sockets = _listening_sockets(port)
        return bool(sockets) and sockets <= _sockets_of(lifeline.group_members(self.group))

    async def wait_ready(self, answers: Callable[[], Awaitable[bool]], timeout_s: float, poll_s: float = 0.1) -> None:
        """Polls `answers` until it says True; raises `EngineDown` (`detail`: the log's end) on death or deadline."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self._exited.is_set():
                raise EngineDown(
                    f"{self.name} died while starting (exit code {self.exit_code}); {self.log_path} says why",
                    detail=self.tail(),
                )
            if await answers():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._exited.wait(), poll_s)
        raise EngineDown(
            f"{self.name} did not answer within {timeout_s:.0f} s; raise start_timeout_s or read {self.log_path}",
            detail=self.tail(),
        )

    async def stop(self, term_timeout_s: float = 15.0) -> None:
        """SIGTERM, a bounded wait, then SIGKILL to the whole group; a caller that is cancelled kills at once.

        Safe to call twice, also at the same time, and before `start`.
        """
        if self._popen is None:
            return
        try:
            if self.is_running:
                self._signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._exited.wait(), term_timeout_s)
        finally:
            self.kill()
        await self._exited.wait()
        self._cut_lifeline()

    def kill(self) -> None:
        """SIGKILL to the whole group, without waiting."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGKILL)

    def tail(self) -> str:
        """The log's last lines."""
        return log_tail(self.log_path, self._noise, self._log_start)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.group, number)

    def _cut_lifeline(self) -> None:
        if self._lifeline_fd is not None:
            os.close(self._lifeline_fd)
            self._lifeline_fd = None

    def _reap(self, popen: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
        # Not yet reaped, so the group's id cannot be another's: sweep what a killed lifeline left behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)
        deadline_s = time.monotonic() + KILL_TIMEOUT_S
        while lifeline.group_members(popen.pid) and time.monotonic() < deadline_s:
            time.sleep(KILL_POLL_S)  # a killed process lives on until the kernel has taken it apart
        code = popen.wait()
        with contextlib.suppress(RuntimeError):  # a closed loop has nobody who waits
            loop.call_soon_threadsafe(self._ended, code)

    def _ended(self, code: int) -> None:
        self._exited.set()
        self._cut_lifeline()
        for callback in self._exit_callbacks:
            callback(code)
