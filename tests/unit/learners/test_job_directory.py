import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engines.errors import Conflict
from learners.checkpoint import list_checkpoints, writing_checkpoint
from learners.config import SftConfig
from learners.events import EventLog, consumed_rows, read_events
from learners.job import JobDirectory, begin, open_job
from learners.status import JobStatus
from learners.submission import VARIABLE

FILES = 5
WRITER = f"""
import sys
from pathlib import Path
from learners.checkpoint import writing_checkpoint
from learners.config import SftConfig
from learners.job import begin, open_job

config = SftConfig(model="/m", data="/d", output=sys.argv[1])
with open_job(config) as job:
    print("open", flush=True)
    step = 0
    while True:
        step += 1
        job.write_result(begin(config).model_copy(update={{"step": step}}))
        job.events.write("step", "x" * 2000, step=step, rows=[str(step)])
        with writing_checkpoint(job.checkpoints, step) as folder:
            for index in range({FILES}):
                (folder / f"file-{{index}}").write_bytes(bytes([step % 251]) * 20000)
        print(step, flush=True)
"""


@pytest.fixture
def config(tmp_path: Path) -> SftConfig:
    return SftConfig(model="/m", data="/d", output=str(tmp_path / "job"))


@pytest.mark.parametrize("num_lines", [1, 2, 7, 20])
def test_a_job_killed_at_any_instant_has_only_whole_files(config: SftConfig, num_lines: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(config.job_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    for _ in range(num_lines):
        child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)

    job = JobDirectory(config.job_path)
    for checkpoint in list_checkpoints(job.checkpoints):
        contents = [(checkpoint.path / f"file-{index}").read_bytes() for index in range(FILES)]
        assert set(contents) == {bytes([checkpoint.step % 251]) * 20000}
    steps = [event.data["step"] for event in read_events(job.events_file)]
    assert steps == list(range(1, len(steps) + 1))
    newest = job.newest_checkpoint()
    assert (newest.step if newest else 0) >= num_lines - 1
    result = job.read_result()
    assert result is None or result.step in {len(steps), len(steps) + 1}

    with open_job(config) as reopened:
        assert not list(reopened.checkpoints.glob(".*"))
        reopened.events.write("step", "again", step=len(steps) + 1)
    assert [event.data["step"] for event in read_events(job.events_file)] == [*steps, len(steps) + 1]


def test_a_torn_last_line_is_cut_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.write("step", "one", step=1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert [event.message for event in read_events(path)] == ["one"]
    with EventLog(path) as log:
        log.write("step", "two", step=2)
    assert [event.message for event in read_events(path)] == ["one", "two"]


def test_rows_of_steps_that_a_resume_went_back_behind_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        for step, rows in [(1, ["a"]), (2, ["b"]), (3, ["c"])]:
            log.write("step", "", step=step, rows=rows)
        log.write("resumed", "", step=1)
        log.write("step", "", step=2, rows=["b"])
    assert consumed_rows(path) == ["a", "b"]


def test_a_checkpoint_whose_writing_fails_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing_checkpoint(tmp_path, 3) as folder:
        shutil.copy(tmp_path / "not-there", folder)
    assert list_checkpoints(tmp_path) == ()


def test_a_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    with writing_checkpoint(tmp_path, 3) as folder:
        (folder / "file").write_text("first")
    with pytest.raises(Conflict, match="never replaced"), writing_checkpoint(tmp_path, 3):
        pass
    assert (tmp_path / "step-3" / "file").read_text() == "first"
    assert not list(tmp_path.glob(".*"))


def test_checkpoints_are_ordered_by_step_and_not_by_name(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        with writing_checkpoint(tmp_path, step):
            pass
    (tmp_path / "step-x").mkdir()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [3, 20, 100]


def test_a_directory_is_run_by_one_process_at_a_time(config: SftConfig) -> None:
    with open_job(config) as job:
        assert job.is_running()
        with pytest.raises(Conflict, match="being run by another process"), open_job(config):
            pass
    assert not job.is_running()
    with open_job(config):
        pass


def test_a_directory_belongs_to_one_configuration(config: SftConfig) -> None:
    with open_job(config):
        pass
    other = config.model_copy(update={"rank": 8})
    with pytest.raises(Conflict, match="holds a job with other settings"), open_job(other):
        pass
    assert "rank = 16" in (config.job_path / "config.toml").read_text()


def test_a_finished_job_stays_finished(config: SftConfig) -> None:
    with open_job(config) as job:
        job.write_result(begin(config))
        job.write_result(begin(config).model_copy(update={"status": JobStatus.SUCCEEDED}))
        with pytest.raises(Conflict):
            job.write_result(begin(config))
        result = job.read_result()
    assert result is not None
    assert result.status is JobStatus.SUCCEEDED


def test_the_result_names_rays_submission(config: SftConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert begin(config).submission_id is None
    monkeypatch.setenv(
        VARIABLE, '{"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_7", "job_name": "raysubmit_7"}}'
    )
    assert begin(config).submission_id == "raysubmit_7"
