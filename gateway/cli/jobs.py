"""`tandem jobs`: what training jobs did, from their directories. Needs no gateway."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.console import print_json, print_table, say
from gateway.cli.options import ConfigOption, JsonOption, load

if TYPE_CHECKING:
    from gateway.jobs import Job

app = typer.Typer(help="List jobs, and show what they did.", no_args_is_help=True)

JobArgument = Annotated[str, typer.Argument(help="A job's name: that of its directory under the jobs' root.")]
_POLL_S = 0.5


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
def show(job: JobArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one job: status, metrics and its best checkpoint.

    tandem jobs show corrections

    tandem jobs show corrections --json
    """
    from gateway.jobs import find_job

    found = find_job(load(config).jobs.root, job)
    document = _document(found)
    if as_json:
        print_json(document)
        return
    print_table(("field", "value"), [(key, str(value)) for key, value in document.items()])
    if found.checkpoint:
        say(f"register it: tandem versions register ALIAS {found.checkpoint}")


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
