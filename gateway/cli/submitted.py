"""A job that Ray took: its events as they come, and what it left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gateway.cli.console import ExitCode, print_json, say

if TYPE_CHECKING:
    from gateway.config import TandemConfig
    from gateway.submit import Submission

_WAIT_TIMEOUT_S = 24 * 3600.0


def follow(config: TandemConfig, submission: Submission, *, wait: bool, as_json: bool) -> None:
    """Prints the job; with `wait`, once it has ended. Raises `typer.Exit` if it failed."""
    from gateway import submit

    say(f"Ray took job {submission.job} as {submission.submission_id}; its directory: {submission.path}")
    has_succeeded = True
    if wait:
        printer = EventPrinter(submission)
        has_succeeded = submit.wait(config, submission, printer.show_new, _WAIT_TIMEOUT_S)
        if not has_succeeded:
            say(f"the job failed; the end of what it printed:\n{submit.output(config, submission)[-3000:]}")
    _print(submission, as_json=as_json)
    if not has_succeeded:
        raise typer.Exit(ExitCode.FAILED)


class EventPrinter:
    """Narrates the events that a job writes from now on, wherever it runs."""

    def __init__(self, submission: Submission) -> None:
        self._path = submission.path
        self._offset = submission.events_from

    def show_new(self) -> None:
        from gateway.jobs import read_events

        events, self._offset = read_events(self._path, self._offset)
        for event in events:
            say(f"  {event.type}: {event.message}")


def _print(submission: Submission, *, as_json: bool) -> None:
    from gateway.jobs import read_job

    job = read_job(submission.path)
    checkpoint = str(job.checkpoint) if job.checkpoint else None
    if as_json:
        print_json(
            {
                "submission_id": submission.submission_id,
                "name": submission.job,
                "path": str(submission.path),
                "status": job.status,
                "best_checkpoint": checkpoint,
            }
        )
    else:
        print(submission.path)
    if checkpoint:
        say(f"register it: tandem versions register ALIAS {checkpoint}")
