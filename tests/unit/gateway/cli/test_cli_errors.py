"""What a user sees of an error: one message on stderr, nothing on stdout, and an exit code that says its kind."""

import subprocess
import sys
from pathlib import Path

import pytest

from engines.errors import (
    AdapterRefused,
    BadRequest,
    ConfigError,
    Conflict,
    DeadlineExceeded,
    EngineDown,
    Internal,
    NotFound,
    TandemError,
)
from gateway.cli.console import ExitCode, exit_code_of


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AdapterRefused("no"), ExitCode.REFUSED),
        (EngineDown("no"), ExitCode.UNHEALTHY),
        (DeadlineExceeded("no"), ExitCode.UNHEALTHY),
        (ConfigError("no"), ExitCode.USAGE),
        (BadRequest("no"), ExitCode.USAGE),
        (NotFound("no"), ExitCode.FAILED),
        (Conflict("no"), ExitCode.FAILED),
        (Internal("no"), ExitCode.FAILED),
        (TandemError("no"), ExitCode.FAILED),
    ],
)
def test_an_error_has_the_exit_code_of_its_kind(error: TandemError, code: ExitCode) -> None:
    assert exit_code_of(error) is code


def test_a_config_typo_is_named_and_exits_2(tmp_path: Path) -> None:
    file = tmp_path / "tandem.toml"
    file.write_text("[gateway]\nprot = 8000\n")
    run = tandem("config", "check", str(file), cwd=tmp_path)
    assert run.returncode == 2
    assert "gateway.prot" in run.stderr
    assert "did you mean 'port'" in run.stderr
    assert run.stdout == ""


def test_no_gateway_is_said_with_the_next_step_and_exits_3(tmp_path: Path) -> None:
    run = tandem("status", "--url", "http://127.0.0.1:9", cwd=tmp_path)
    assert run.returncode == 3
    assert "tandem serve" in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_a_feedback_that_says_two_things_exits_2(tmp_path: Path) -> None:
    run = tandem("feedback", "chatcmpl-1", "--up", "--correction", "teal", "--url", "http://127.0.0.1:9", cwd=tmp_path)
    assert run.returncode == 2
    assert "one thing" in run.stderr


def test_a_missing_image_exits_2_before_anything_is_asked(tmp_path: Path) -> None:
    run = tandem("chat", "what is this?", "-i", "none.png", "--url", "http://127.0.0.1:9", cwd=tmp_path)
    assert run.returncode == 2
    assert "none.png" in run.stderr


def test_a_bad_hyperparameter_is_named_before_a_job_is_submitted(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('model = "m"\ndata = "d"\nlearning_rat = 0.1\n')
    run = tandem("train", "sft", "--config", str(job), "--submit", cwd=tmp_path)
    assert run.returncode == 2
    assert "learning_rat" in run.stderr
    assert "learning_rate" in run.stderr
    assert not (tmp_path / "data").exists()


def test_a_learner_that_refuses_gives_its_exit_code_to_train(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('model = "m"\ndata = "d"\nlearning_rat = 0.1\n')
    run = tandem("train", "sft", "--config", str(job), cwd=tmp_path)
    assert run.returncode == 2
    assert "learning_rat" in run.stderr


def tandem(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd, check=False)
