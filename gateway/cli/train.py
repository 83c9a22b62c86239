"""`tandem train`: start a training job, here or through Ray Jobs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.children import run_learners
from gateway.cli.options import JsonOption, load
from gateway.cli.submitted import follow

if TYPE_CHECKING:
    from gateway.config import TandemConfig

app = typer.Typer(help="Train an adapter.", no_args_is_help=True)

JobOption = Annotated[Path, typer.Option("--config", "-c", help="The job's file (TOML).")]
OverridesOption = Annotated[list[str] | None, typer.Option("--set", help="key=value, over the job's file.")]
SubmitOption = Annotated[bool, typer.Option("--submit", help="Run it on the cluster, through Ray Jobs.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="With --submit: return when it has ended.")]
DeploymentOption = Annotated[
    Path | None, typer.Option(help="The gateway's configuration: jobs' root and Ray. Default: tandem.toml here.")
]


@app.callback()
def train() -> None:
    """Train an adapter. The job leaves a directory with its events, checkpoints and result: see `tandem jobs`."""


@app.command("sft")
def sft(
    job: JobOption,
    settings: OverridesOption = None,
    submit: SubmitOption = False,
    wait: WaitOption = True,
    deployment: DeploymentOption = None,
    as_json: JsonOption = False,
) -> None:
    """Supervised fine-tuning of a LoRA on rows with right answers. Run again, the same job resumes.

    tandem train sft --config deploy/examples/job-sft.toml

    tandem train sft --config job.toml --set max_steps=50 --submit --deployment tandem.toml
    """
    _train("sft", job, settings, deployment, submit=submit, wait=wait, as_json=as_json)


@app.command("grpo")
def grpo(
    job: JobOption,
    settings: OverridesOption = None,
    submit: SubmitOption = False,
    wait: WaitOption = True,
    deployment: DeploymentOption = None,
    as_json: JsonOption = False,
) -> None:
    """Asynchronous GRPO of a LoRA on rewards for what engines sample. Run again, the same job resumes.

    tandem train grpo --config deploy/examples/job-grpo.toml --submit

    tandem train grpo --config job.toml --set max_staleness=0 --submit --deployment tandem.toml
    """
    _train("grpo", job, settings, deployment, submit=submit, wait=wait, as_json=as_json)


def _train(
    method: str,
    job: Path,
    settings: list[str] | None,
    deployment: Path | None,
    *,
    submit: bool,
    wait: bool,
    as_json: bool,
) -> None:
    config = load(deployment)
    overrides = tuple(settings or ())
    if submit:
        from gateway.submit import submit as to_ray

        follow(config, to_ray(config, method, job, overrides), wait=wait, as_json=as_json)
        return
    os.environ["TANDEM_JOBS__ROOT"] = str(config.jobs.root)
    _show_ray(config)
    flags = [part for setting in overrides for part in ("--set", setting)]
    run_learners(method, "--config", str(job), *flags, *(["--json"] if as_json else []))


def _show_ray(config: TandemConfig) -> None:
    """A job that samples from the serving engines finds them on the Ray that the gateway started."""
    from gateway import ray_daemon

    daemon = None if config.ray.address else ray_daemon.find(config.run_root)
    if daemon is not None:
        os.environ.update(daemon.environment())
