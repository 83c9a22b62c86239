"""Every file under deploy/examples is read by what it is for."""

from pathlib import Path

import pytest

from gateway.config import load_config
from learners.config import validate

EXAMPLES = Path(__file__).parents[4] / "deploy" / "examples"
FILES = sorted(EXAMPLES.glob("*.toml"))


@pytest.mark.parametrize(
    "file", [file for file in FILES if not file.name.startswith("job-")], ids=lambda file: file.name
)
def test_a_configuration_loads_and_names_an_engine_for_every_model(file: Path) -> None:
    config = load_config(file)
    assert config.models
    assert {model.engine for model in config.models.values()} == set(config.engines)


@pytest.mark.parametrize("file", [file for file in FILES if file.name.startswith("job-")], ids=lambda file: file.name)
def test_a_job_is_valid(file: Path) -> None:
    import tomllib

    assert validate(tomllib.loads(file.read_text())).max_steps


def test_the_examples_are_those_that_the_documents_name() -> None:
    assert [file.name for file in FILES] == ["demo.toml", "fake.toml", "job-sft.toml", "qwen3vl-cpu.toml"]
