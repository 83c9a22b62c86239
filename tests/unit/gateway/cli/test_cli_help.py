"""`tandem --help` is fast because it imports nothing that a verb alone needs."""

import subprocess
import sys

import pytest

HEAVY = ("ray", "torch", "openai", "matplotlib", "sqlalchemy", "vllm", "transformers", "fastapi", "httpx2", "numpy")
VERBS = (
    *(
        ("serve",),
        ("stop",),
        ("demo",),
        ("doctor",),
        ("status",),
        ("chat",),
        ("feedback",),
        ("train", "sft"),
        ("train", "grpo"),
        ("jobs", "cancel"),
        ("jobs", "resume"),
        ("config", "show"),
    ),
    *(("versions", verb) for verb in ("ls", "show", "register", "promote", "rollback", "export")),
    *(("data", "check"), ("data", "build"), ("jobs", "ls"), ("jobs", "show"), ("jobs", "logs"), ("config", "check")),
)
TELL = "import sys; print(sorted(set({heavy!r}) & {{name.split('.')[0] for name in sys.modules}}))"


@pytest.mark.parametrize("arguments", [("--help",), ("versions", "--help"), ("train", "sft", "--help")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = f"""
import sys
sys.argv = ["tandem", *{arguments!r}]
from gateway.cli import main
try:
    main()
except SystemExit:
    {TELL.format(heavy=HEAVY)}
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "Usage: tandem" in run.stdout
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_help_of_a_verb_shows_two_examples(verb: tuple[str, ...]) -> None:
    from typer.testing import CliRunner

    from gateway.cli.commands import app

    result = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert result.stdout.count(f"tandem {' '.join(verb)}") >= 3  # the usage line, and two examples


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb[0] != "train"], ids=" ".join)
def test_a_verb_that_prints_a_result_has_json(verb: tuple[str, ...]) -> None:
    from typer.testing import CliRunner

    from gateway.cli.commands import app

    assert "--json" in CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
