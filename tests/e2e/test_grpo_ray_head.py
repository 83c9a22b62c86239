"""Ray's head dies under a GRPO job: it ends by itself, says why, leaves nothing, and goes on under another head.

Ray, the engine's process and the delivery to it are real; the engine is the fake one and the answers are scripted, as
nothing here depends on a model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from stack import ROOT, WEIGHTS, Stack, wait_until

from gateway import ray_daemon
from learners.events import Event, consumed_rows, read_events

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
NUM_ROWS = 12
FIRST_ANSWERS = 5
"""Groups until the workers are silent: two steps and a checkpoint are made, and the job waits for the third."""
ALL_ANSWERS = 1000
REACH_TIMEOUT_S = 180.0
NAMED_WITHIN_S = 20.0
"""From the death to the event that says so: ten seconds of patience, and some for a slow machine."""
GONE_WITHIN_S = 60.0
"""From the death to the end of the process: Ray's own goodbye takes up to 17 s of it."""
AGENTS_GONE_TIMEOUT_S = 120.0
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own: they find out after a minute that their node is gone."""
JOB = """
name = "headless"
model = "{weights}/base"
data = "{data}"
rank = 8
prompts_per_step = 2
group_size = 3
probe_size = 1
save_every = 2
max_staleness = 0
[rollout]
max_running = 2
{where}
"""
OWN = """
ray_address = ""
[rollout.own]
model = "fake"
kind = "fake"
max_loras = 3
reserved_for_rollout = 2
"""
GUEST = 'engine = "small"\n'


class Job:
    def __init__(self, root: Path, where: str) -> None:
        data = root / "rows.jsonl"
        data.write_text("".join(json.dumps({"text": f"is it {n}?", "answer": "yes"}) + "\n" for n in range(NUM_ROWS)))
        (root / "job.toml").write_text(JOB.format(weights=WEIGHTS, data=data, where=where))
        self._root = root
        self.events_file = root / "jobs" / "headless" / "events.jsonl"

    @contextmanager
    def running(self, num_answers: int, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        with (self._root / "log").open("ab") as log:
            learner = subprocess.Popen(
                [sys.executable, "tests/support/scripted_grpo.py", str(self._root / "job.toml"), str(num_answers)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={
                    **os.environ,
                    **environment,
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support"))),
                    "TANDEM_JOBS__ROOT": str(self._root / "jobs"),
                },
            )
        try:
            yield learner
        finally:
            learner.kill()
            learner.wait(30)

    def events(self, kind: str) -> list[Event]:
        return [event for event in read_events(self.events_file) if event.type == kind]

    def wait_silence(self, learner: subprocess.Popen[bytes]) -> None:
        """Until two steps are made, saved and sent."""
        wait_until(
            lambda: learner.poll() is not None or (self.events("checkpoint") and len(self.events("push")) == 3),
            "a checkpoint",
            REACH_TIMEOUT_S,
        )
        assert learner.poll() is None, self.log()

    def check_end(self, learner: subprocess.Popen[bytes], killed_s: float) -> None:
        """It names what is gone, and is gone itself, each within its time."""
        wait_until(lambda: self.events("failed"), "the event that names it", NAMED_WITHIN_S)
        assert "has been gone for 10 s" in self.events("failed")[0].message
        assert learner.wait(GONE_WITHIN_S - (time.monotonic() - killed_s)) == 1, self.log()
        assert "Unavailable: Ray's " in self.log()

    def check_whole(self) -> None:
        rows = consumed_rows(self.events_file)
        assert sorted(map(int, rows)) == list(range(1, NUM_ROWS + 1))
        versions = [event.data["version"] for event in self.events("push")]
        assert len(set(versions)) == len(versions)
        assert {version.partition("/")[0] for version in versions} == {"headless.1", "headless.2"}

    def log(self) -> str:
        return (self._root / "log").read_text(errors="replace")[-4000:]


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_agent(process: psutil.Process) -> bool:
    try:
        return " ".join(process.cmdline()).startswith(AGENTS)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("names", [("gcs_server",), ("raylet",), ("gcs_server", "raylet")], ids="+".join)
def test_a_job_whose_own_head_dies_says_so_leaves_nothing_and_goes_on(tmp_path: Path, names: tuple[str, ...]) -> None:
    job = Job(tmp_path, OWN)
    with job.running(FIRST_ANSWERS, {}) as learner:
        job.wait_silence(learner)
        below = psutil.Process(learner.pid).children(recursive=True)
        victims = [process for process in below if process.name() in names]
        assert len(victims) == len(names)
        assert any("engines.fake.server" in process.cmdline() for process in below)
        for victim in victims:
            victim.kill()
        job.check_end(learner, time.monotonic())
    wait_until(lambda: not [p for p in below if lives(p) and not is_agent(p)], "all it started is gone", GONE_WITHIN_S)
    with job.running(ALL_ANSWERS, {}) as learner:
        assert learner.wait(REACH_TIMEOUT_S) == 0, job.log()
    job.check_whole()
    wait_until(lambda: not any(map(lives, below)), "Ray's agents are gone too", AGENTS_GONE_TIMEOUT_S)


def test_a_guest_whose_clusters_head_dies_says_so_and_goes_on_when_the_cluster_is_back(tmp_path: Path) -> None:
    settings: dict[str, str | int | float | bool] = {
        "engines.small.max_loras": 5,
        "engines.small.reserved_for_rollout": 2,
    }
    stack = Stack.make(tmp_path, "fake", WEIGHTS / "base", settings=settings)
    job = Job(tmp_path, GUEST)
    stack.start()
    try:
        with job.running(FIRST_ANSWERS, ray_of(stack)) as learner:
            job.wait_silence(learner)
            daemon = ray_daemon.find(stack.data / "run")
            assert daemon is not None
            head = psutil.Process(daemon.pid)
            for process in (head, *head.children(recursive=True)):
                if process == head or process.name() in ("gcs_server", "raylet"):
                    process.kill()
            job.check_end(learner, time.monotonic())
        stack.tandem("stop", "-c", str(stack.config))
        stack.start()
        with job.running(ALL_ANSWERS, ray_of(stack)) as learner:
            assert learner.wait(REACH_TIMEOUT_S) == 0, job.log()
        job.check_whole()
    finally:
        stack.stop()


def ray_of(stack: Stack) -> dict[str, str]:
    daemon = ray_daemon.find(stack.data / "run")
    assert daemon is not None
    return daemon.environment()
