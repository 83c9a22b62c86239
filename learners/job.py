"""A job's directory: everything that a run of a job leaves, and all that resuming it needs.

    JOB/  config.toml (resolved)   events.jsonl   rejected.jsonl   result.json   checkpoints/step-N/

Invariants: one process at a time (a lock on `.lock`, gone with the process); every file but the two logs is replaced
whole; a directory belongs to one configuration for ever.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engines.adapter.files import write_atomic
from engines.errors import Conflict
from learners.checkpoint import Checkpoint, list_checkpoints, remove_partial
from learners.config import JobConfig
from learners.data.readers import RejectedRow, write_rejected
from learners.events import EventLog
from learners.status import JobResult, JobStatus, check_transition
from learners.submission import submission_id


class JobDirectory:
    """The files of one job. Reading needs no lock; writing happens inside `open_job`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = EventLog(path / "events.jsonl")

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def newest_checkpoint(self) -> Checkpoint | None:
        whole = list_checkpoints(self.checkpoints)
        return whole[-1] if whole else None

    def read_result(self) -> JobResult | None:
        """None before the first run has begun."""
        file = self.path / "result.json"
        return JobResult.model_validate_json(file.read_bytes()) if file.exists() else None

    def write_result(self, result: JobResult) -> None:
        """Raises `Conflict` if the job's status may not become that of `result`."""
        old = self.read_result()
        if old is not None:
            check_transition(old.status, result.status)
        write_atomic(self.path / "result.json", result.model_dump_json(indent=2).encode() + b"\n")

    def write_rejected(self, rows: Sequence[RejectedRow]) -> None:
        write_rejected(self.path / "rejected.jsonl", rows)

    def is_running(self) -> bool:
        """Whether a process holds the job now. A job whose status is `running` but which is not was killed."""
        lock = self.path / ".lock"
        if not lock.exists():
            return False
        descriptor = os.open(lock, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


@contextmanager
def open_job(config: JobConfig) -> Iterator[JobDirectory]:
    """Creates or reopens the job's directory and holds it. Raises `Conflict`: held by another, or another's."""
    job = JobDirectory(config.job_path)
    job.checkpoints.mkdir(parents=True, exist_ok=True)
    with _holding(job):
        _claim(job, config)
        remove_partial(job.checkpoints)
        with job.events:
            yield job


def begin(config: JobConfig, *, num_steps: int = 0, num_rows: int = 0, num_rejected: int = 0) -> JobResult:
    """The result of a job that has just begun."""
    return JobResult(
        status=JobStatus.RUNNING,
        method=config.method,
        name=config.name,
        num_steps=num_steps,
        num_rows=num_rows,
        num_rejected=num_rejected,
        submission_id=submission_id(),
    )


@contextmanager
def _holding(job: JobDirectory) -> Iterator[None]:
    descriptor = os.open(job.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _lock(descriptor):
            raise Conflict(
                f"{job.path} is being run by another process: wait for it, or give this job another output",
                param="output",
            )
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, patience_s: float = 1.0) -> bool:
    """Patient, since `is_running` holds the lock for an instant."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def _claim(job: JobDirectory, config: JobConfig) -> None:
    text = config.to_toml().encode()
    if not job.config_file.exists():
        write_atomic(job.config_file, text)
    elif job.config_file.read_bytes() != text:
        raise Conflict(
            f"{job.path} holds a job with other settings (see its config.toml): "
            "resume it with those, or give this job another name or output",
            param="output",
        )
