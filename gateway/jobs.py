"""What jobs have left: reads job directories, writes nothing. See `contracts.md`'s "A job" for their files.

A job owns its directory; the gateway reads it while the job runs, so every file is either whole or, the event log's
last line, skipped until it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from engines.errors import BadRequest, NotFound


class JobResult(BaseModel):
    """`result.json`; fields that a newer learner adds are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    status: str
    method: str
    step: int = 0
    num_steps: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    best_checkpoint: str | None = None
    message: str | None = None
    submission_id: str | None = None


class JobEvent(BaseModel):
    """A line of `events.jsonl`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    time: str
    level: str
    type: str
    message: str
    data: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """One job directory. `result` is None until its first run has begun; `is_killed`: it ended without a word."""

    name: str
    path: Path
    result: JobResult | None
    is_killed: bool = False

    @property
    def status(self) -> str:
        if self.is_killed:
            return "killed"
        return self.result.status if self.result else "pending"

    @property
    def method(self) -> str:
        """What trains it. Raises `BadRequest` if nothing says so."""
        if self.result is not None:
            return self.result.method
        try:
            return str(tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))["method"])
        except (KeyError, tomllib.TOMLDecodeError) as error:
            raise BadRequest(
                f"{self.path}/config.toml names no method: start the job from its own file with `tandem train`"
            ) from error

    @property
    def checkpoint(self) -> Path | None:
        """The best checkpoint, to be registered as a version."""
        if self.result is None or self.result.best_checkpoint is None:
            return None
        return self.path / self.result.best_checkpoint

    def events(self) -> Iterator[JobEvent]:
        """Whole lines, oldest first."""
        return read_events(self.path, 0)[0]


def list_jobs(root: Path) -> list[Job]:
    """Every job directory under the jobs' root, by name."""
    if not root.is_dir():
        return []
    return [read_job(folder) for folder in sorted(root.iterdir()) if (folder / "config.toml").is_file()]


def find_job(root: Path, name: str) -> Job:
    """Raises `NotFound`, naming the jobs that exist."""
    names = {job.name: job for job in list_jobs(root)}
    if name not in names:
        raise NotFound(f"no job '{name}' under {root}; there are: {', '.join(names) or 'none'}", param="job")
    return names[name]


def read_job(path: Path) -> Job:
    """A job that says `running` while no process holds its lock was killed."""
    result = _read_result(path)
    is_killed = False
    if result and result.status == "running" and not _is_held(path):
        result = _read_result(path)  # it may have ended just before the lock was looked at
        is_killed = result is not None and result.status == "running"
    return Job(path.name, path, result, is_killed)


def _read_result(path: Path) -> JobResult | None:
    file = path / "result.json"
    return JobResult.model_validate_json(file.read_bytes()) if file.exists() else None


def _is_held(path: Path) -> bool:
    """Whether a process holds the job: its lock on `.lock` is gone with the process."""
    try:
        descriptor = os.open(path / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def size_of_events(path: Path) -> int:
    """Bytes of the event log of a job's directory; 0: there is none yet."""
    file = path / "events.jsonl"
    return file.stat().st_size if file.exists() else 0


def read_events(path: Path, offset: int) -> tuple[Iterator[JobEvent], int]:
    """The events of a job's directory from byte `offset` on, and the offset to go on from."""
    file = path / "events.jsonl"
    if not file.exists():
        return iter(()), offset
    with file.open("rb") as log:
        log.seek(offset)
        content = log.read()
    whole = content[: content.rfind(b"\n") + 1]
    return (JobEvent.model_validate(json.loads(line)) for line in whole.splitlines()), offset + len(whole)
