"""A GRPO job as a guest on a stack's engine, in a process of its own, for as long as it is wanted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from stack import ROOT, WEIGHTS, Stack

from gateway import ray_daemon
from learners.events import Event, read_events

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 90.0
POLL_S = 0.2
JOB = """
method = "grpo"
name = "{name}"
model = "{model}"
data = "{data}"
prompts_per_step = {prompts_per_step}
group_size = {group_size}
max_steps = 100000
save_every = 100000
max_mismatch = {max_mismatch}
device = "{device}"
num_threads = {num_threads}
[[rewards]]
name = "exact_match"
[rollout]
engine = "{engine}"
max_running = {max_running}
max_new_tokens = 8
users_factor = {users_factor}
"""


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """What all jobs of a benchmark have in common."""

    data: Path
    device: str = "auto"
    num_threads: int = 1
    prompts_per_step: int = 8
    group_size: int = 8
    max_running: int = 16
    max_mismatch: float = 0.02

    @property
    def samples_per_step(self) -> int:
        return self.prompts_per_step * self.group_size


class GuestJob:
    """`start` returns once groups are sampled; `stop` ends it as a user would, by SIGTERM."""

    def __init__(self, stack: Stack, root: Path, name: str, settings: GuestSettings, users_factor: float) -> None:
        self.settings = settings
        self._directory = root / "jobs" / name
        self._log = root / f"{name}.log"
        self._config = root / f"{name}.toml"
        values = {field: getattr(settings, field) for field in GuestSettings.__slots__}
        self._config.write_text(
            JOB.format(**values, name=name, model=WEIGHTS / "base", engine=stack.engine, users_factor=users_factor)
        )
        daemon = ray_daemon.find(stack.data / "run")
        assert daemon is not None, "the stack's Ray does not run"
        own = {"TANDEM_JOBS__ROOT": str(root / "jobs"), "OMP_NUM_THREADS": str(settings.num_threads)}
        self._environment = {**os.environ, **daemon.environment(), **own}

    async def start(self) -> None:
        self._process = self._spawn()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not any(event.type == "push" for event in self.events()):
            self.check()
            assert time.monotonic() < deadline_s, f"{self._config.stem} samples nothing: {self._tail()}"
            await asyncio.sleep(POLL_S)

    def check(self) -> None:
        """An assertion with the end of its log if the job has ended by itself."""
        assert self._process.poll() is None, f"{self._config.stem} ended: {self._tail()}"

    async def stop(self) -> None:
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def events(self) -> list[Event]:
        path = self._directory / "events.jsonl"
        return list(read_events(path)) if path.exists() else []

    def samples_per_s(self, begin_s: float, end_s: float) -> float:
        """Learned from, between two moments (`time.time()`): from the last step before `begin_s`, or the first version
        delivered, to the last step before `end_s`."""
        marks = [event.time.timestamp() for event in self.events() if event.type == "push"][:1]
        marks += [event.time.timestamp() for event in self.events() if event.type == "step"]
        seen = [mark for mark in marks if mark <= end_s]
        first = max((number for number, mark in enumerate(seen) if mark <= begin_s), default=0)
        num_steps = len(seen) - 1 - first
        return self.settings.samples_per_step * num_steps / (seen[-1] - seen[first]) if num_steps > 0 else 0.0

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "learners", "grpo", "--config", str(self._config)],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]
