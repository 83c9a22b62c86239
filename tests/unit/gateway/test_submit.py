"""What of a job can be cancelled or resumed, and what is said where it can't. Ray itself is not asked here."""

from __future__ import annotations

from pathlib import Path

import pytest
from doctor_context import configured

from engines.errors import BadRequest, Conflict, DeadlineExceeded, Unavailable
from gateway import submit
from gateway.jobs import Job, JobResult, size_of_events


def job(path: Path, status: str = "running", submission_id: str | None = None, *, is_killed: bool = False) -> Job:
    return Job("teal", path, JobResult(status=status, method="sft", submission_id=submission_id), is_killed)


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_a_job_that_has_ended_is_not_cancelled(tmp_path: Path, status: str) -> None:
    with pytest.raises(Conflict, match=f"nothing to cancel: the status of job teal is '{status}'"):
        submit.cancel(configured(tmp_path), job(tmp_path, status, "id"))


def test_a_job_that_was_killed_is_not_cancelled(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="the status of job teal is 'killed'"):
        submit.cancel(configured(tmp_path), job(tmp_path, is_killed=True))


def test_a_job_that_ray_does_not_run_is_ended_where_it_runs(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="started without --submit"):
        submit.cancel(configured(tmp_path), job(tmp_path))


def test_without_ray_it_is_said_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="tandem serve"):
        submit.cancel(configured(tmp_path), job(tmp_path, submission_id="raysubmit_1"))


@pytest.mark.parametrize("status", ["running", "succeeded"])
def test_a_job_that_runs_or_has_succeeded_is_not_resumed(tmp_path: Path, status: str) -> None:
    with pytest.raises(Conflict, match=f"nothing to resume: the status of job teal is '{status}'"):
        submit.resume(configured(tmp_path), job(tmp_path, status))


def test_a_resumed_job_is_checked_before_ray_is_asked(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('method = "sft"\nmodle = "x"\n')
    with pytest.raises(BadRequest, match="modle"):
        submit.resume(configured(tmp_path), job(tmp_path, "cancelled"))


def test_a_job_that_never_began_is_of_the_method_that_its_file_names(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('method = "grpo"\n')
    assert Job("teal", tmp_path, None).method == "grpo"
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(BadRequest, match="names no method"):
        _ = Job("teal", tmp_path, None).method


def test_waiting_ends_with_the_job_or_at_its_deadline(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "result.json").write_text('{"status": "running", "method": "sft"}')
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DeadlineExceeded, match="still runs"):
            submit.wait_for_end(tmp_path, lambda: None, timeout_s=0.0)

        def end() -> None:
            (tmp_path / "result.json").write_text('{"status": "cancelled", "method": "sft"}')

        assert submit.wait_for_end(tmp_path, end, timeout_s=30.0).status == "cancelled"


def test_what_an_event_log_holds_is_counted_in_bytes(tmp_path: Path) -> None:
    assert size_of_events(tmp_path) == 0
    (tmp_path / "events.jsonl").write_text("{}\n")
    assert size_of_events(tmp_path) == 3
