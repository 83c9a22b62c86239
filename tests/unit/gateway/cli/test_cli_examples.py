"""Every file under deploy/examples is read by what it is for."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.config import load_config
from learners.config import validate

EXAMPLES = Path(__file__).parents[4] / "deploy" / "examples"
FILES = sorted(EXAMPLES.glob("*.toml"))


@pytest.mark.parametrize(
    "file", [file for file in FILES if not file.name.startswith("job-")], ids=lambda file: file.name
)
def test_a_configuration_loads_and_names_an_engine_for_every_model(file: Path) -> None:
    # A hub id is looked up in this machine's cache, which is not the example's matter.
    hub_ids = [name for name, engine in _engines(file).items() if engine["model"].count("/") == 1]
    config = load_config(file, {"engines": {name: {"kind": "fake"} for name in hub_ids}})
    assert config.models
    assert {model.engine for model in config.models.values()} == set(config.engines)


def _engines(file: Path) -> dict[str, Any]:
    engines: dict[str, Any] = tomllib.loads(file.read_text())["engines"]
    return engines


@pytest.mark.parametrize("file", [file for file in FILES if file.name.startswith("job-")], ids=lambda file: file.name)
def test_a_job_is_valid(file: Path) -> None:
    assert validate(tomllib.loads(file.read_text())).max_steps


def test_the_examples_are_those_that_the_documents_name() -> None:
    assert [file.name for file in FILES] == ["demo.toml", "fake.toml", "job-sft.toml", "qwen3vl-cpu.toml", "small.toml"]
