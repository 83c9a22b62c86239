"""`tandem jobs show` draws what a job's steps were, on a terminal, as JSON and as a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engines.errors import BadRequest
from gateway.cli.commands import app
from gateway.cli.curves import documents_of, sparkline
from gateway.curves import Curve, Curves

RISING = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def test_a_rising_series_rises_over_all_blocks() -> None:
    assert sparkline([float(value) for value in range(8)]) == RISING
    assert sparkline([float(value) for value in range(800)], width=8) == RISING


def test_a_series_is_as_long_as_its_values_and_no_longer_than_the_width() -> None:
    assert sparkline([]) == ""
    assert [len(sparkline([0.0, 1.0] * num, width=5)) for num in (1, 2, 3, 100)] == [2, 4, 5, 5]


def test_a_constant_series_is_flat_and_a_value_that_is_no_number_is_marked() -> None:
    assert len(set(sparkline([0.3] * 9))) == 1
    assert sparkline([0.0, math.nan, 1.0]) == f"{RISING[0]}!{RISING[-1]}"
    assert sparkline([math.inf, -math.inf]) == "!!"


def test_the_largest_numbers_there_are_can_be_drawn() -> None:
    assert sparkline([-1e308, 1e308]) == f"{RISING[0]}{RISING[-1]}"


def test_a_value_that_is_not_finite_is_null_in_json() -> None:
    (document,) = documents_of(Curves((Curve("kl", (1, 2), (math.nan, 1.0)),), 0, ""))
    assert document == {"name": "kl", "steps": [1, 2], "values": [None, 1.0]}


def test_a_job_is_shown_with_its_curves_and_what_binds_it(job: Path) -> None:
    shown = show(job)
    assert "the learner is what the run waits for" in shown.stdout
    (row,) = (line.split() for line in shown.stdout.splitlines() if line.strip().startswith("reward"))
    assert row == ["reward", "0.1", "0.8", "0.1", "0.8", RISING]
    assert "register it" not in shown.stdout


def test_json_holds_the_series_and_a_picture_is_written_beside_it(job: Path) -> None:
    picture = job / "curves.png"
    document = json.loads(show(job, "--json", "--picture", str(picture)).stdout)
    (reward,) = document["series"]
    assert (reward["name"], len(reward["steps"]), reward["values"][-1]) == ("reward", 8, 0.8)
    assert document["bound"] == "the learner is what the run waits for"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_job_without_steps_has_nothing_to_draw(job: Path) -> None:
    (job / "events.jsonl").unlink()
    assert json.loads(show(job, "--json").stdout)["series"] == []
    shown = show(job, "--picture", str(job / "curves.png"))
    assert isinstance(shown.exception, BadRequest)
    assert "has taken no steps yet" in shown.exception.message


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "sharper"
    path.mkdir()
    (path / "config.toml").write_text('method = "grpo"\n')
    (path / "result.json").write_text('{"status": "succeeded", "method": "grpo"}')
    lines = [line("step", step=step, reward=step / 10) for step in range(1, 9)]
    lines.append(line("bound", "the learner is what the run waits for"))
    (path / "events.jsonl").write_text("".join(lines))
    monkeypatch.setenv("TANDEM_JOBS__ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return path


def line(kind: str, message: str = "", **data: Any) -> str:
    return json.dumps({"time": "t", "level": "info", "type": kind, "message": message, "data": data}) + "\n"


def show(job: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["jobs", "show", job.name, *arguments])
