"""Training jobs through Ray Jobs: the same `python -m learners ...`, placed and supervised by the cluster.

Every path in a submitted job is absolute, so no copy of the working directory travels; nodes share the file system that
holds the jobs' root. Whoever may submit to Ray may run code there: the token of our own daemon guards it.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import BadRequest, Conflict, DeadlineExceeded, Unavailable
from gateway import ray_daemon
from gateway.config import TandemConfig
from gateway.jobs import Job, read_job, size_of_events

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_AGENT_TIMEOUT_S = 30.0
_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that Ray has accepted. What its event log held before ends at byte `events_from`."""

    submission_id: str
    job: str
    path: Path
    events_from: int = 0


def submit(config: TandemConfig, method: str, job_file: Path, settings: tuple[str, ...]) -> Submission:
    """Checks the job's file, then hands it to Ray. Raises `BadRequest` (a bad setting) or `Unavailable` (no Ray)."""
    from learners.config import METHODS, ROOT_VARIABLE, load_job

    os.environ[ROOT_VARIABLE] = str(config.jobs.root)
    job = load_job(job_file, settings, METHODS[method])
    command = [sys.executable, "-m", "learners", method, "--config", str(job_file.absolute())]
    for setting in settings:
        command += ["--set", setting]
    events_from = size_of_events(job.job_path)
    submission_id = _submit(connect(config), shlex.join(command), config)
    return Submission(submission_id, job.name, job.job_path, events_from)


def resume(config: TandemConfig, job: Job) -> Submission:
    """Submits a job that has ended once more, as it was configured: it goes on from its last checkpoint.

    Raises `Conflict` for one that runs or has succeeded, else as `submit` does.
    """
    if job.status in ("running", "succeeded"):
        advice = "cancel it first" if job.status == "running" else "give more steps to a job of another name"
        raise Conflict(
            f"there is nothing to resume: the status of job {job.name} is '{job.status}'; {advice}", param="job"
        )
    return submit(config, job.method, job.path / "config.toml", ())


def cancel(config: TandemConfig, job: Job) -> str:
    """Asks Ray to end a job: it gets SIGTERM, and writes a checkpoint. Returns its submission id.

    Raises `Conflict` for a job that does not run, or that Ray does not run, or `Unavailable` (no Ray).
    """
    if job.status != "running" or job.result is None:
        raise Conflict(f"there is nothing to cancel: the status of job {job.name} is '{job.status}'", param="job")
    submission_id = job.result.submission_id
    if submission_id is None:
        raise Conflict(
            f"job {job.name} was started without --submit: end it where it runs (Ctrl-C, or SIGTERM to its process)",
            param="job",
        )
    client = connect(config)
    try:
        client.stop_job(submission_id)
    except RuntimeError as error:  # Ray's answer for a job that it does not know
        raise Conflict(
            f"this Ray does not know job {job.name} as {submission_id}; was it submitted to another one? "
            f"Name its configuration with --config ({str(error)[:200]})",
            param="job",
        ) from error
    return submission_id


def wait_for_end(path: Path, on_poll: Callable[[], None], timeout_s: float) -> Job:
    """The job at `path` once it runs no more. Raises `DeadlineExceeded`."""
    deadline = time.monotonic() + timeout_s
    while (job := read_job(path)).status == "running":
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"job {job.name} was asked to end and still runs after {timeout_s:.0f} s: `tandem jobs logs {job.name}`"
            )
        on_poll()
        time.sleep(_POLL_S)
    on_poll()
    return job


def wait(config: TandemConfig, submission: Submission, on_poll: Callable[[], None], timeout_s: float) -> bool:
    """True once the job has succeeded, False if it failed or was stopped. `on_poll` is called between looks."""
    client = connect(config)
    deadline = time.monotonic() + timeout_s
    while not (status := client.get_job_status(submission.submission_id)).is_terminal():
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"job {submission.job} has not ended within {timeout_s:.0f} s; it goes on: `tandem jobs ls`"
            )
        on_poll()
        time.sleep(_POLL_S)
    on_poll()
    return bool(status == "SUCCEEDED")


def output(config: TandemConfig, submission: Submission) -> str:
    """What the job has printed."""
    return str(connect(config).get_job_logs(submission.submission_id))


def connect(config: TandemConfig) -> JobSubmissionClient:
    """A client of the configured cluster's job server. Raises `Unavailable`."""
    address = _dashboard(config)  # before Ray is imported: it reads the token's mode from the environment once
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        raise Unavailable(f"Ray's job server does not answer ({error}): is `tandem serve` running?") from error


def _dashboard(config: TandemConfig) -> str | None:
    if config.ray.address:
        return None if config.ray.address == "auto" else config.ray.address
    daemon = ray_daemon.find(config.run_root)
    if daemon is None:
        raise Unavailable("no Ray runs for this configuration: start it with `tandem serve`, or train without --submit")
    os.environ.update(daemon.environment())
    return daemon.dashboard


def _submit(client: JobSubmissionClient, entrypoint: str, config: TandemConfig) -> str:
    from learners.config import ROOT_VARIABLE

    environment = {"env_vars": {ROOT_VARIABLE: str(config.jobs.root), "OMP_NUM_THREADS": "1"}}
    deadline = time.monotonic() + _AGENT_TIMEOUT_S
    while True:
        try:
            return str(client.submit_job(entrypoint=f"exec {entrypoint}", runtime_env=environment))
        except RuntimeError as error:
            # Ray's job agent comes up some seconds after its dashboard.
            if "agent" not in str(error).lower() or time.monotonic() > deadline:
                raise BadRequest(f"Ray refused the job: {str(error)[:300]}") from error
        time.sleep(_POLL_S)
