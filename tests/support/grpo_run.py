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
    """One job: its step events, seconds from the first push to each step's end, and each push's `push_mismatch`."""

    steps: tuple[Event, ...]
    at_s: tuple[float, ...]
    push_mismatches: tuple[float, ...]

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
    print(f"{name} ...", file=sys.stderr, flush=True)
    words = [word for setting in (f"name={name}", *settings) for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "learners", "grpo", "--config", str(job), *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TANDEM_JOBS__ROOT": str(root / "jobs"), **environment},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return read_run(root / "jobs" / name)


def read_run(job: Path) -> Run:
    events = list(read_events(job / "events.jsonl"))
    pushes = [event for event in events if event.type == "push"]
    steps = tuple(event for event in events if event.type == "step")
    at_s = tuple((event.time - pushes[0].time).total_seconds() for event in steps)
    return Run(steps, at_s, tuple(float(push.data["push_mismatch"]) for push in pushes))
