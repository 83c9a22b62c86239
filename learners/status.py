"""What `result.json` says: the status of a job, its metrics and its newest checkpoint.

running -> succeeded | failed | cancelled
running | failed | cancelled -> running     the same directory run again: it resumes
succeeded                                   final
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from engines.errors import Conflict


class JobStatus(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_S = JobStatus
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    _S.RUNNING: frozenset({_S.RUNNING, _S.SUCCEEDED, _S.FAILED, _S.CANCELLED}),  # running again: killed, now resumed
    _S.FAILED: frozenset({_S.RUNNING}),
    _S.CANCELLED: frozenset({_S.RUNNING}),
    _S.SUCCEEDED: frozenset(),
}


class JobResult(BaseModel):
    """The content of `result.json`: written at the start, at every checkpoint and at the end.

    `best_checkpoint` is the newest one, relative to the job directory: SFT has no evaluation set to choose by.
    `metrics` are those of the newest step; `train_seconds` counts all runs of the job.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: JobStatus
    method: str
    name: str
    step: int = 0
    num_steps: int = 0
    num_rows: int = 0
    num_rejected: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    best_checkpoint: str | None = None
    message: str | None = None
    submission_id: str | None = None


def check_transition(old: JobStatus, new: JobStatus) -> None:
    """Raises `Conflict` unless `old -> new` is in the table."""
    if new not in TRANSITIONS[old]:
        raise Conflict(f"the job is {old.value}; it cannot become {new.value}: start one in another directory")
