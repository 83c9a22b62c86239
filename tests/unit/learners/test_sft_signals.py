"""A signal at any instant of a run: what `result.json` says afterwards is true, and nothing escapes."""

import os
import signal
from pathlib import Path

import pytest

from learners import sft
from learners.cancel import CancelRequest
from learners.config import SftConfig
from learners.events import EventLog, read_events
from learners.job import JobDirectory
from learners.run import Run
from learners.sft import run_sft
from learners.status import JobResult, JobStatus

NUMBERS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def config(tmp_path: Path) -> SftConfig:
    return SftConfig(model="/m", data="/d", output=str(tmp_path / "job"))


def train_nothing(run: Run, _: CancelRequest) -> int:
    run.update(step=3, num_steps=3)
    return 3


def status_of(config: SftConfig) -> JobStatus:
    result = JobDirectory(config.job_path).read_result()
    assert result is not None
    return result.status


@pytest.mark.parametrize("number", NUMBERS)
def test_a_second_signal_while_the_first_is_recorded_changes_nothing(
    config: SftConfig, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    write = EventLog.write

    def signalled_write(log: EventLog, type: str, message: str, **rest: object) -> None:
        if type == "cancelled":
            os.kill(os.getpid(), number)
        write(log, type, message, **rest)

    monkeypatch.setattr(EventLog, "write", signalled_write)
    monkeypatch.setattr(sft, "_run", lambda *_: os.kill(os.getpid(), number))
    assert run_sft(config).status is JobStatus.CANCELLED
    assert status_of(config) is JobStatus.CANCELLED


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_after_the_success_was_written_does_not_undo_it(
    config: SftConfig, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    write_result = JobDirectory.write_result

    def signalled_write(job: JobDirectory, result: JobResult) -> None:
        write_result(job, result)
        if result.status is JobStatus.SUCCEEDED:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(JobDirectory, "write_result", signalled_write)
    monkeypatch.setattr(sft, "_run", train_nothing)
    assert run_sft(config).status is JobStatus.SUCCEEDED
    assert run_sft(config).status is status_of(config) is JobStatus.SUCCEEDED


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_while_the_job_starts_cancels_it(
    config: SftConfig, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    start = Run.start

    def signalled_start(run: Run) -> None:
        os.kill(os.getpid(), number)
        start(run)

    monkeypatch.setattr(Run, "start", signalled_start)
    monkeypatch.setattr(sft, "_run", lambda *_: pytest.fail("this must not run"))
    assert run_sft(config).status is JobStatus.CANCELLED
    assert status_of(config) is JobStatus.CANCELLED


def test_a_defect_fails_the_job_and_leaves_its_traceback(config: SftConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise KeyError("loss")

    monkeypatch.setattr(sft, "_run", broken)
    with pytest.raises(KeyError):
        run_sft(config)
    assert status_of(config) is JobStatus.FAILED
    failed = next(event for event in read_events(config.job_path / "events.jsonl") if event.type == "failed")
    assert "in broken" in failed.data["traceback"]
