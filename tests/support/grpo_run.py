"""A GRPO job as a process of its own, and the curve that it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from stack import ROOT

from learners.events import Event, read_events

WINDOW = 5
RUN_TIMEOUT_S = 1200


@dataclass(frozen=True)
class Run:
    """One job: its step events, seconds from the first push to each step's end, each push's `push_mismatch`, and its
    evaluations."""

    steps: tuple[Event, ...]
    at_s: tuple[float, ...]
    push_mismatches: tuple[float, ...]
    evaluations: tuple[Event, ...] = ()

    def seconds_to(self, reward: float) -> float | None:
        """Until the mean reward of the last `WINDOW` steps first reached it; None if it never did."""
        rewards = self.values("reward")
        for end in range(WINDOW, len(rewards) + 1):
            if fmean(rewards[end - WINDOW : end]) >= reward:
                return self.at_s[end - 1]
        return None

    def values(self, name: str) -> list[float]:
        return [float(event.data[name]) for event in self.steps]


def run_job(job: Path, root: Path, name: str, settings: Sequence[str], environment: Mapping[str, str]) -> Run:
    """Trains to the end. `settings` are `key=value` over the file `job`; the directory is `root`/jobs/`name`."""
    process = start_job(job, root, name, settings, environment)
    try:
        process.wait(RUN_TIMEOUT_S)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return finished_run(process, root, name)


def start_job(
    job: Path, root: Path, name: str, settings: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """As `run_job`, without waiting. What it prints goes into `root`/`name`.log."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    words = [word for setting in (f"name={name}", *settings) for word in ("--set", setting)]
    with _log_of(root, name).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "learners", "grpo", "--config", str(job), *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TANDEM_JOBS__ROOT": str(root / "jobs"), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def finished_run(process: subprocess.Popen[bytes], root: Path, name: str) -> Run:
    """Of a process that has ended; an assertion with what it said if it failed."""
    assert process.returncode == 0, f"{name}: {_log_of(root, name).read_text(errors='replace')[-6000:]}"
    return read_run(root / "jobs" / name)


def _log_of(root: Path, name: str) -> Path:
    return root / f"{name}.log"


def read_run(job: Path) -> Run:
    events = list(read_events(job / "events.jsonl"))
    pushes = [event for event in events if event.type == "push"]
    steps = tuple(event for event in events if event.type == "step")
    at_s = tuple((event.time - pushes[0].time).total_seconds() for event in steps)
    evaluations = tuple(event for event in events if event.type == "evaluation")
    return Run(steps, at_s, tuple(float(push.data["push_mismatch"]) for push in pushes), evaluations)
