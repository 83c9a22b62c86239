"""The command line against a real gateway with the fake engine: a user's session, from `serve --detach` to `stop`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from gateway.ray_daemon import find

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

START_TIMEOUT_S = 120.0
VERB_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Shell:
    """A user's terminal in a directory with a tandem.toml."""

    home: Path
    port: int

    def tandem(self, *arguments: str, timeout_s: float = VERB_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gateway.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=self.home, check=False)

    def ok(self, *arguments: str, timeout_s: float = VERB_TIMEOUT_S) -> str:
        run = self.tandem(*arguments, timeout_s=timeout_s)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def ask(self, question: str = "what shape?") -> dict[str, object]:
        return json.loads(self.ok("chat", question, "-i", "picture.png", "--json"))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, free_port: int) -> Iterator[Shell]:
    home = tmp_path_factory.mktemp("user")
    model = Path(__file__).parents[2] / "learners" / "toy" / "weights" / "base"
    (home / "tandem.toml").write_text(
        f'[engines.fake]\nkind = "fake"\nmodel = "{model}"\n[models.vqa]\nengine = "fake"\n'
        f'[gateway]\nport = {free_port}\n[ray]\naddress = ""\n'
    )
    Image.new("RGB", (64, 64), (0, 128, 128)).save(home / "picture.png")
    (home / "empty").mkdir()
    shell = Shell(home, free_port)
    try:
        shell.ok("serve", "--detach", timeout_s=START_TIMEOUT_S)
        yield shell
    finally:
        shell.tandem("stop", timeout_s=START_TIMEOUT_S)


@pytest.fixture(scope="module")
def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_status_says_what_the_alias_names(shell: Shell) -> None:
    status = json.loads(shell.ok("status", "--json"))
    assert status["ready"] is True
    assert [(alias["id"], alias["live"]) for alias in status["aliases"]] == [("vqa", "fake@0")]
    assert "fake@0" in shell.ok("status")


def test_the_doctor_finds_all_that_runs(shell: Shell) -> None:
    found = {row["check"]: row for row in json.loads(shell.ok("doctor", "--json"))}
    assert "our gateway" in found["port"]["found"]
    assert "answers at" in found["ray"]["found"]
    assert found["replicas"] == {"check": "replicas", "level": "OK", "found": "fake/0 holds its base", "mend": ""}
    assert found["orphans"]["found"] == "1 engine processes, each with its actor"
    assert found["store"]["level"] == found["migration"]["level"] == found["integrity"]["level"] == "OK"


def test_a_streamed_answer_is_the_whole_one(shell: Shell) -> None:
    streamed = shell.tandem("chat", "what shape?", "-i", "picture.png")
    whole = shell.tandem("chat", "what shape?", "-i", "picture.png", "--no-stream")
    assert streamed.stdout == whole.stdout != ""
    assert "tandem feedback chatcmpl-" in streamed.stderr


def test_corrections_become_a_file_that_data_check_accepts(shell: Shell) -> None:
    answer = str(shell.ask()["id"])
    shell.ok("feedback", answer, "--correction", "circle")
    shell.ok("feedback", answer, "--correction", "square", "--json")
    report = json.loads(shell.ok("data", "build", "--out", "set.jsonl", "--json"))
    assert (report["rows"], report["superseded"], report["left_out"]) == (1, 1, 0)
    (row,) = (json.loads(line) for line in (shell.home / "set.jsonl").read_text().splitlines())
    assert (row["text"], row["answer"], row["completion_id"]) == ("what shape?", "square", answer)
    assert json.loads(shell.ok("data", "check", "set.jsonl", "--json"))["num_rejected"] == 0


def test_the_same_feedback_under_one_key_is_stored_once(shell: Shell) -> None:
    answer = str(shell.ask("what colour?")["id"])
    flags = ("feedback", answer, "--rating", "0.5", "--idempotency-key", "k1", "--json")
    assert json.loads(shell.ok(*flags))["id"] == json.loads(shell.ok(*flags))["id"]
    other = shell.tandem("feedback", answer, "--rating", "0.6", "--idempotency-key", "k1")
    assert other.returncode == 1
    assert "Idempotency-Key" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("chat", "hello", "--model", "nope"), 1, "there are: "),
        (("feedback", "chatcmpl-0", "--up"), 1, "chatcmpl-0"),
        (("versions", "show", "vqa@9"), 1, "vqa@9"),
        (("versions", "promote", "vqa"), 2, "alias@N"),
        (("versions", "rollback", "vqa"), 1, "nothing to roll back to"),
        (("versions", "register", "vqa", "empty"), 4, "adapter_config.json"),
        (("jobs", "show", "nope"), 1, "no job 'nope'"),
        (("serve",), 1, "tandem stop"),
        (("serve", "--detach"), 1, "tandem stop"),
    ],
)
def test_a_refusal_is_said_on_stderr_and_by_the_exit_code(
    shell: Shell, arguments: tuple[str, ...], code: int, words: str
) -> None:
    run = shell.tandem(*arguments)
    assert run.returncode == code, run.stderr
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_a_job_that_fails_on_the_cluster_fails_the_command_and_leaves_its_reason(shell: Shell) -> None:
    (shell.home / "bad.jsonl").write_text('{"text": "no answer"}\n')
    base = Path(__file__).parents[2] / "learners" / "toy" / "weights" / "base"
    job = shell.home / "job.toml"
    job.write_text(f'name = "bad"\nmodel = "{base}"\ndata = "{shell.home}/bad.jsonl"\n')
    run = shell.tandem("train", "sft", "--config", "job.toml", "--submit", "--json", timeout_s=START_TIMEOUT_S)
    assert run.returncode == 1, run.stderr
    assert json.loads(run.stdout)["status"] == "failed"
    assert "Traceback" not in run.stderr
    (listed,) = json.loads(shell.ok("jobs", "ls", "--json"))
    assert (listed["name"], listed["status"]) == ("bad", "failed")
    assert json.loads(shell.ok("jobs", "show", "bad", "--json"))["message"] == listed["message"]
    assert "failed" in shell.ok("jobs", "logs", "bad", "--follow")


def test_rays_own_command_line_runs_the_same_job_and_says_what_is_wrong_with_it(shell: Shell) -> None:
    job = shell.home / "empty" / "job.toml"
    job.write_text('name = "typo"\nmodle = "base"\ndata = "rows.jsonl"\n')
    submit = "ray job submit --working-dir empty -- python -m learners sft --config job.toml"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-c", f". data/run/ray.env && {submit}"],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        cwd=shell.home,
        env={**os.environ, "PATH": path},
        check=False,
    )
    job.unlink()
    assert run.returncode == 1, run.stderr
    assert "did you mean model?" in run.stdout + run.stderr
    assert not (shell.home / "data" / "jobs" / "typo").exists()


def test_a_taken_port_is_refused_before_an_engine_starts(shell: Shell) -> None:
    run = shell.tandem("serve", "--set", "data=elsewhere")
    assert run.returncode == 1
    assert str(shell.port) in run.stderr
    assert not (shell.home / "elsewhere" / "run" / "ray.json").exists()


def test_stop_ends_the_gateway_and_everything_below_it(shell: Shell) -> None:
    pid = json.loads(shell.ok("stop", "--json", timeout_s=START_TIMEOUT_S))["gateway"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert find(shell.home / "data" / "run") is None
    assert shell.tandem("status").returncode == 3
    assert "nothing of this configuration was running" in shell.tandem("stop").stderr
