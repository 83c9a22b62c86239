"""`tandem jobs`: what training jobs did, from their directories, and their end and return, through Ray."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engines.errors import BadRequest
from gateway.cli.console import print_json, print_table, say
from gateway.cli.curves import documents_of, print_curves
from gateway.cli.options import ConfigOption, JsonOption, load
from gateway.cli.submitted import EventPrinter, follow

if TYPE_CHECKING:
    from gateway.curves import Curves
    from gateway.jobs import Job

app = typer.Typer(help="List jobs, show what they did, cancel and resume them.", no_args_is_help=True)

JobArgument = Annotated[str, typer.Argument(help="A job's name: that of its directory under the jobs' root.")]
_POLL_S = 0.5
_CANCEL_TIMEOUT_S = 120.0


@app.command("ls")
def ls(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List jobs with status and progress.

    tandem jobs ls

    tandem jobs ls --json
    """
    from gateway.jobs import list_jobs

    root = load(config).jobs.root
    jobs = list_jobs(root)
    if as_json:
        print_json([_document(job) for job in jobs])
    else:
        print_table(("job", "status", "step", "metrics"), [_row(job) for job in jobs])
        say(f"{len(jobs)} jobs under {root}")


@app.command("show")
def show(
    job: JobArgument,
    picture: Annotated[
        Path | None, typer.Option(help="Write the curves as a picture too: a .png, .svg or .pdf.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one job: status, metrics, its best checkpoint, and the curves of its steps.

    tandem jobs show corrections

    tandem jobs show corrections --picture curves.png --json
    """
    from gateway.curves import curves_of
    from gateway.jobs import find_job

    found = find_job(load(config).jobs.root, job)
    document = _document(found)
    curves = curves_of(found.events())
    if picture is not None:
        _draw(found, curves, picture)
    if as_json:
        print_json({**document, "bound": curves.bound or None, "series": documents_of(curves)})
        return
    print_table(("field", "value"), [(key, str(value)) for key, value in document.items()])
    print_curves(curves)
    if found.checkpoint:
        say(f"register it: tandem versions register ALIAS {found.checkpoint}")


@app.command("cancel")
def cancel(
    job: JobArgument,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it has ended.")] = True,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a job that was submitted; `resume` goes on from its last checkpoint.

    tandem jobs cancel corrections

    tandem jobs cancel corrections --no-wait --json
    """
    from gateway import submit
    from gateway.jobs import find_job, size_of_events

    resolved = load(config)
    found = find_job(resolved.jobs.root, job)
    events_from = size_of_events(found.path)
    submission = submit.Submission(submit.cancel(resolved, found), found.name, found.path, events_from)
    if wait:
        found = submit.wait_for_end(found.path, EventPrinter(submission).show_new, _CANCEL_TIMEOUT_S)
    if as_json:
        print_json(_document(found))
    else:
        print(f"{found.name}: {found.status}")
    say(f"go on from its last checkpoint: tandem jobs resume {found.name}")


@app.command("resume")
def resume(
    job: JobArgument,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it has ended.")] = True,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a job that was cancelled, killed or failed once more: it goes on from its last checkpoint.

    tandem jobs resume corrections

    tandem jobs resume corrections --no-wait --json
    """
    from gateway import submit
    from gateway.jobs import find_job

    resolved = load(config)
    follow(resolved, submit.resume(resolved, find_job(resolved.jobs.root, job)), wait=wait, as_json=as_json)


@app.command("logs")
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a job's events.

    tandem jobs logs corrections

    tandem jobs logs corrections --follow --json
    """
    from gateway.jobs import find_job, read_events, read_job

    path = find_job(load(config).jobs.root, job).path
    offset = 0
    while True:
        has_ended = read_job(path).status not in ("pending", "running")
        events, offset = read_events(path, offset)
        for event in events:
            line = (
                event.model_dump_json() if as_json else f"{event.time} {event.level:7} {event.type:10} {event.message}"
            )
            print(line, flush=True)
        if has_ended or not follow:
            return
        time.sleep(_POLL_S)


def _draw(job: Job, curves: Curves, picture: Path) -> None:
    from gateway.curves_picture import draw_curves

    if not curves.curves:
        raise BadRequest(f"job {job.name} has taken no steps yet: there is nothing to draw", param="picture")
    draw_curves(curves, f"{job.name}: {job.status}", picture)
    say(f"the curves are in {picture}")


def _document(job: Job) -> dict[str, object]:
    result = job.result.model_dump(mode="json") if job.result else {}
    return {
        **result,
        "name": job.name,
        "status": job.status,
        "path": str(job.path),
        "best_checkpoint": str(job.checkpoint) if job.checkpoint else None,
    }


def _row(job: Job) -> tuple[str, ...]:
    if job.result is None:
        return job.name, job.status, "-", "-"
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in job.result.metrics.items())
    return job.name, job.status, f"{job.result.step}/{job.result.num_steps}", job.result.message or metrics or "-"
