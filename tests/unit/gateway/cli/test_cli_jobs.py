"""`tandem jobs` reads what a job has left, also while the job writes."""

import fcntl
import json
from pathlib import Path

import pytest

from engines.errors import NotFound
from gateway.jobs import find_job, list_jobs, read_events, read_job


def test_a_job_is_listed_with_its_best_checkpoint(tmp_path: Path) -> None:
    path = make_job(tmp_path, "teal", {"status": "succeeded", "method": "sft", "best_checkpoint": "checkpoints/step-5"})
    make_job(tmp_path, "young", None)
    (tmp_path / "not-a-job").mkdir()
    young, teal = sorted(list_jobs(tmp_path), key=lambda job: job.status)
    assert (teal.name, teal.checkpoint) == ("teal", path / "checkpoints/step-5")
    assert (young.status, young.checkpoint) == ("pending", None)


def test_an_unknown_job_is_refused_naming_those_that_exist(tmp_path: Path) -> None:
    make_job(tmp_path, "teal", None)
    with pytest.raises(NotFound, match="there are: teal"):
        find_job(tmp_path, "blue")


def test_events_are_read_once_and_a_torn_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    path = make_job(tmp_path, "teal", None)
    lines = [json.dumps({"time": "t", "level": "info", "type": "step", "message": str(n)}) for n in range(3)]
    log = path / "events.jsonl"
    log.write_text(f"{lines[0]}\n{lines[1]}\n{lines[2][:20]}")
    events, offset = read_events(path, 0)
    assert [event.message for event in events] == ["0", "1"]
    log.write_text("\n".join(lines) + "\n")
    events, offset = read_events(path, offset)
    assert [event.message for event in events] == ["2"]
    assert list(read_events(path, offset)[0]) == []


def test_fields_of_a_newer_learner_are_kept(tmp_path: Path) -> None:
    path = make_job(tmp_path, "teal", {"status": "running", "method": "sft", "reward": 0.5})
    result = read_job(path).result
    assert result is not None
    assert result.model_dump()["reward"] == 0.5


def test_a_running_job_that_no_process_holds_was_killed(tmp_path: Path) -> None:
    path = make_job(tmp_path, "teal", {"status": "running", "method": "sft"})
    assert read_job(path).status == "killed"
    with (path / ".lock").open("w") as lock:
        assert read_job(path).status == "killed"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_job(path).status == "running"
    assert [job.status for job in list_jobs(tmp_path)] == ["killed"]
    (path / "result.json").write_text('{"status": "succeeded", "method": "sft"}')
    assert read_job(path).status == "succeeded"


def make_job(root: Path, name: str, result: dict[str, object] | None) -> Path:
    path = root / name
    path.mkdir()
    (path / "config.toml").write_text("")
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    return path
