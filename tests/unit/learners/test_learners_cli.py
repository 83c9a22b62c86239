import json
import subprocess
import sys
from pathlib import Path

import pytest

from engines.errors import AdapterRefused, BadRequest, Conflict, Internal, Refused
from learners.cli import exit_code_of


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "learners", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_typo_in_a_setting_exits_2_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(f'root = "{tmp_path}/jobs"\nmodel = "m"\ndata = "d"\nlearning_rat = 1.0\n')
    done = run("sft", "--config", str(tmp_path / "job.toml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "learning_rat: no such setting; did you mean learning_rate?\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.toml"]


def test_a_file_of_good_rows_passes_the_check(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "answer": "b"}\n')
    done = run("data", "check", str(tmp_path / "rows.jsonl"), "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["num_rows"], report["num_rejected"]) == (0, 1, 0)


def test_a_file_with_a_bad_row_fails_the_check_and_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "answer": "b"}\n{"text": "a"}\n')
    done = run("data", "check", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 1
    assert "line 2: neither 'messages' nor 'text' and 'answer'" in done.stdout


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    done = run("data", "check", str(tmp_path / "rows.jsonl"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("data: no file at")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadRequest("x"), 2),
        (AdapterRefused("x"), 4),
        (Refused("the loss is nan"), 1),
        (Refused("x", param="data"), 1),
        (Conflict("x"), 1),
        (Internal("x"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: BadRequest, code: int) -> None:
    assert exit_code_of(error) == code


def test_a_defect_is_one_line_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(f'root = "{tmp_path}/jobs"\nmodel = "{tmp_path}"\ndata = "job.toml"\n')
    (tmp_path / "config.json").write_text("{}")
    script = (
        "from learners import sft\n"
        "def broken(config): raise KeyError('one\\ntwo')\n"
        "sft.run_sft = broken\n"
        "from learners.cli import main\n"
        f"main(['sft', '-c', '{tmp_path}/job.toml', '--set', 'data={tmp_path}/job.toml'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("KeyError: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["toy", "--help"], ["sft", "--help"], ["data", "--help"]])
def test_help_loads_no_model_library(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom learners.cli import main\n"
        f"try: main({arguments})\nexcept SystemExit as end: code = end.code\n"
        "print(code, sorted({'torch', 'transformers', 'ray', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert "Usage" in done.stdout
