"""A GRPO job on real vLLM whose processes are killed one after the other: it goes on, and leaves nothing behind.

A row may fail three times by itself; what the kills cost it is not counted.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from stack import ROOT, WEIGHTS, run_learner, wait_until

from learners.checkpoint import list_checkpoints
from learners.events import Event, consumed_rows, read_events
from learners.grpo.state import load_state
from rollout.pump import PumpSnapshot
from rollout.types import Group

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
SEED = 5
PAUSE_S = (0.0, 4.0)
NUM_STEPS = 10
PROMPTS_PER_STEP = 8
STEP_TIMEOUT_S = 180.0
END_TIMEOUT_S = 240.0
GONE_TIMEOUT_S = 30.0
AGENTS_GONE_TIMEOUT_S = 120.0
ENGINE, WORKER = "vllm.entrypoints.openai.api_server", "ray::RolloutWorker"
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own: they find out after a minute that their node is gone."""
PARTS = (ENGINE, WORKER, "rollout.rewards.child", "lifeline.py", "raylet", "gcs_server")
JOB = f"""
name = "killed"
model = "{WEIGHTS}/base"
data = "{{data}}"
max_steps = {NUM_STEPS}
save_every = 2
prompts_per_step = {PROMPTS_PER_STEP}
group_size = 4
max_staleness = 1
[[rewards]]
name = "exact_match"
[rollout]
ray_address = ""
max_running = {PROMPTS_PER_STEP}
max_new_tokens = 8
[rollout.own]
model = "{WEIGHTS}/base"
kind = "vllm"
max_loras = 5
reserved_for_rollout = 3
"""


class Job:
    """One job directory, and the process that works on it."""

    def __init__(self, root: Path) -> None:
        data = root / "prompts.jsonl"
        num_rows = str(NUM_STEPS * PROMPTS_PER_STEP)
        run_learner("toy", "rows", "--set", "corrections", "--num", num_rows, "--out", str(data))
        (root / "job.toml").write_text(JOB.format(data=data))
        self._root = root
        self.events_file = root / "jobs" / "killed" / "events.jsonl"
        self.seen: set[psutil.Process] = set()

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """A start of the job; whatever happens, its process does not outlive the block."""
        with (self._root / "log").open("ab") as log:
            learner = subprocess.Popen(
                [sys.executable, "-m", "learners", "grpo", "--config", str(self._root / "job.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TANDEM_JOBS__ROOT": str(self._root / "jobs")},
            )
        try:
            yield learner
        finally:
            learner.kill()
            learner.wait(30)

    def events(self) -> list[Event]:
        return list(read_events(self.events_file))

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events() if event.type == kind]

    def stop_with_groups_held(self, learner: subprocess.Popen[bytes]) -> tuple[int, tuple[Group, ...]]:
        """Stops the process (SIGSTOP) at a checkpoint that holds groups of a version before its own.

        Returns its step, and those groups as they will be taken.
        """
        num_seen = 0
        while True:
            seen = num_seen
            wait_until(
                lambda seen=seen: learner.poll() is not None or len(self.of("checkpoint")) > seen,  # type: ignore[misc]
                "a checkpoint",
                STEP_TIMEOUT_S,
            )
            learner.send_signal(signal.SIGSTOP)
            num_seen = len(self.of("checkpoint"))
            newest = list_checkpoints(self.events_file.parent / "checkpoints")[-1]
            buffered = load_state(newest.trainer_state, PumpSnapshot).snapshot.buffered
            groups = sorted((one.group for one in buffered), key=lambda group: group.version.number)
            if groups and groups[0].version.number <= newest.step:
                return newest.step, tuple(groups)
            learner.send_signal(signal.SIGCONT)
            assert newest.step < NUM_STEPS, "no checkpoint held a group"

    def steps(self) -> int:
        """How many were made, over all starts."""
        return sum(event.type == "step" for event in self.events())

    def wait_steps(self, learner: subprocess.Popen[bytes], number: int) -> None:
        """Until so many more were made."""
        wanted = self.steps() + number
        wait_until(lambda: learner.poll() is not None or self.steps() >= wanted, "a step", STEP_TIMEOUT_S)
        assert learner.poll() is None, self.log()

    def processes(self, learner: subprocess.Popen[bytes]) -> list[tuple[psutil.Process, str]]:
        """All below the learner, with their command lines; they are kept in `seen`."""
        below = psutil.Process(learner.pid).children(recursive=True)
        self.seen.update(below)
        return [(process, _command_of(process)) for process in below]

    def find(self, learner: subprocess.Popen[bytes], part: str) -> psutil.Process:
        return next(process for process, command in self.processes(learner) if part in command)

    def left(self) -> list[str]:
        """What still lives of all that was seen."""
        return [_command_of(process)[:200] for process in self.seen if _lives(process)]

    def left_of_ours(self) -> list[str]:
        return [command for command in self.left() if not command.startswith(AGENTS)]

    def log(self) -> str:
        return (self._root / "log").read_text(errors="replace")[-4000:]


def _command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def pause() -> Callable[[], None]:
    """Until some instant: what is killed then is at whatever it is at."""
    chance = random.Random(SEED)
    return lambda: threading.Event().wait(chance.uniform(*PAUSE_S)) and None


def test_a_job_whose_processes_are_killed_learns_from_every_row_once_and_leaves_nothing(
    tmp_path: Path, pause: Callable[[], None]
) -> None:
    job = Job(tmp_path)
    with job.running() as learner:
        job.wait_steps(learner, 1)
        pause()
        commands = [command for _, command in job.processes(learner)]
        assert all(any(part in command for command in commands) for part in PARTS), commands
        assert learner.poll() is None
        learner.kill()
    wait_until(lambda: not job.left_of_ours(), "what the killed job started is gone", GONE_TIMEOUT_S)
    with job.running() as learner:
        job.wait_steps(learner, 1)
        pause()
        job.find(learner, WORKER).kill()
        job.wait_steps(learner, 1)
        pause()
        engine = job.find(learner, ENGINE)
        job.processes(learner)
        os.killpg(os.getpgid(engine.pid), signal.SIGKILL)
        assert job.steps() < 2 * NUM_STEPS
        job.wait_steps(learner, 1)
        job.processes(learner)
        assert learner.wait(END_TIMEOUT_S) == 0, job.log()
    wait_until(lambda: not job.left_of_ours(), "what the job started is gone", GONE_TIMEOUT_S)
    wait_until(lambda: not job.left(), "Ray's agents are gone too", AGENTS_GONE_TIMEOUT_S)
    check_whole(job)


def test_a_job_killed_with_groups_in_its_checkpoint_learns_from_those_first(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.running() as learner:
        step, held = job.stop_with_groups_held(learner)
        learner.kill()
    with job.running() as learner:
        assert learner.wait(STEP_TIMEOUT_S + END_TIMEOUT_S) == 0, job.log()
    first = next(event for event in after_resume(job) if event.type == "step")
    assert first.data["step"] == step + 1
    rows = [group.prompt.id for group in held][:PROMPTS_PER_STEP]
    assert first.data["rows"][: len(rows)] == rows
    # What is sampled after the resume is of the version that it began with; older ones can only be those held.
    assert first.data["staleness_max"] == step + 1 - held[0].version.number
    check_whole(job)


def after_resume(job: Job) -> list[Event]:
    events = job.events()
    return events[next(place for place, event in enumerate(events) if event.type == "resumed") :]


def check_whole(job: Job) -> None:
    """Each row was learned from once, and no version's name was used twice."""
    events = job.events()
    assert events[-1].type == "succeeded"
    assert len(consumed_rows(job.events_file)) == NUM_STEPS * PROMPTS_PER_STEP
    assert len(set(consumed_rows(job.events_file))) == NUM_STEPS * PROMPTS_PER_STEP
    versions = [event.data["version"] for event in events if event.type == "push"]
    assert len(set(versions)) == len(versions)
    assert {version.partition("/")[0] for version in versions} == {"killed.1", "killed.2"}
