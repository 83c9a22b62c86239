"""`tandem train`: start a training job, here or through Ray Jobs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.children import run_learners
from gateway.cli.console import ExitCode, print_json, say
from gateway.cli.options import JsonOption, load

if TYPE_CHECKING:
    from gateway.config import TandemConfig
    from gateway.submit import Submission

app = typer.Typer(help="Train an adapter.", no_args_is_help=True)

_WAIT_TIMEOUT_S = 24 * 3600.0


@app.callback()
def train() -> None:
    """Train an adapter. The job leaves a directory with its events, checkpoints and result: see `tandem jobs`."""


@app.command("sft")
def sft(
    job: Annotated[Path, typer.Option("--config", "-c", help="The job's file (TOML).")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, over the job's file.")] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Run it on the cluster, through Ray Jobs.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="With --submit: return when it has ended.")] = True,
    deployment: Annotated[
        Path | None, typer.Option(help="The gateway's configuration: jobs' root and Ray. Default: tandem.toml here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Supervised fine-tuning of a LoRA on rows with right answers. Run again, the same job resumes.

    tandem train sft --config deploy/examples/job-sft.toml

    tandem train sft --config job.toml --set max_steps=50 --submit --deployment tandem.toml
    """
    config = load(deployment)
    overrides = tuple(settings or ())
    if submit:
        _submit(config, job, overrides, wait=wait, as_json=as_json)
        return
    os.environ["TANDEM_JOBS__ROOT"] = str(config.jobs.root)
    flags = [part for setting in overrides for part in ("--set", setting)]
    run_learners("sft", "--config", str(job), *flags, *(["--json"] if as_json else []))


def _submit(config: TandemConfig, job: Path, overrides: tuple[str, ...], *, wait: bool, as_json: bool) -> None:
    from gateway import submit

    submission = submit.submit(config, "sft", job, overrides)
    say(f"Ray took job {submission.job} as {submission.submission_id}; its directory: {submission.path}")
    has_succeeded = True
    if wait:
        has_succeeded = submit.wait(config, submission, EventPrinter(submission).show_new, _WAIT_TIMEOUT_S)
        if not has_succeeded:
            say(f"the job failed; the end of what it printed:\n{submit.output(config, submission)[-3000:]}")
    _print_submission(submission, as_json=as_json)
    if not has_succeeded:
        raise typer.Exit(ExitCode.FAILED)


class EventPrinter:
    """Narrates the events of a job that runs elsewhere."""

    def __init__(self, submission: Submission) -> None:
        self._path = submission.path
        self._offset = 0

    def show_new(self) -> None:
        from gateway.jobs import read_events

        events, self._offset = read_events(self._path, self._offset)
        for event in events:
            say(f"  {event.type}: {event.message}")


def _print_submission(submission: Submission, *, as_json: bool) -> None:
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
