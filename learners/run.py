"""One process's work on a job: its configuration, its directory, and the result so far."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

from engines.errors import TandemError
from learners.cancel import Cancelled, CancelRequest, listening
from learners.config import JobConfig
from learners.events import Level
from learners.job import JobDirectory, begin, open_job
from learners.status import JobResult, JobStatus

C = TypeVar("C", bound=JobConfig)


class Run(Generic[C]):
    """Keeps `result.json` true: `running` while the block runs, and how it ended afterwards."""

    def __init__(self, config: C, job: JobDirectory) -> None:
        self.config = config
        self.job = job
        before = job.read_result()
        self.is_resumed = before is not None
        self.result = before or begin(config)
        self.best_checkpoint: str | None = None

    def update(self, **values: object) -> None:
        """Changes fields of the result in memory."""
        self.result = self.result.model_copy(update=values)

    def start(self) -> None:
        self.update(status=JobStatus.RUNNING, message=None, submission_id=begin(self.config).submission_id)
        self.job.write_result(self.result)
        self.job.events.write("started", f"job {self.config.name}", submission_id=self.result.submission_id)

    def save(self) -> None:
        """Writes the result as it is now, with the best checkpoint: the newest one, unless somebody knows better."""
        self.update(best_checkpoint=self.best_checkpoint or self._newest())
        self.job.write_result(self.result)

    def _newest(self) -> str | None:
        newest = self.job.newest_checkpoint()
        return f"{newest.path.parent.name}/{newest.path.name}" if newest else None

    def end(self, status: JobStatus, message: str, **data: object) -> JobResult:
        self.update(status=status, message=message)
        level: Level = "error" if status is JobStatus.FAILED else "info"
        self.job.events.write(status.value, message, level=level, step=self.result.step, **data)
        self.save()
        return self.result

    def fail(self, error: Exception) -> None:
        """A defect leaves its traceback in the event."""
        if isinstance(error, TandemError):
            self.end(JobStatus.FAILED, error.message)
        else:
            trace = "".join(traceback.format_exception(error))
            self.end(JobStatus.FAILED, f"{type(error).__name__}: {error}", traceback=trace)

    def cancel(self) -> JobResult:
        return self.end(JobStatus.CANCELLED, "cancelled; run the same job again to go on")


def run_job(config: C, body: Callable[[Run[C], CancelRequest], int]) -> JobResult:
    """Runs `body` in the job's directory, or goes on with the job there. A finished job is answered as it is.

    `body` trains until it returns the number of steps, or stops earlier when asked to. Raises `TandemError`, after
    writing into the directory why the job failed. A cancelled job returns.
    """
    with listening() as request, open_job(config) as job:
        run = Run(config, job)
        if run.result.status is JobStatus.SUCCEEDED:
            return run.result
        run.start()
        try:
            with request.interruptible():
                num_steps = body(run, request)
        except Cancelled:
            return run.cancel()
        except Exception as error:
            run.fail(error)
            raise
        return (
            run.cancel() if run.result.step < num_steps else run.end(JobStatus.SUCCEEDED, f"trained {num_steps} steps")
        )
