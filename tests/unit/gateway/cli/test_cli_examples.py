"""Every file under deploy/examples is read by what it is for."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.config import load_config
from learners.config import GrpoConfig, validate

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
    assert [file.name for file in FILES] == [
        "demo.toml",
        "fake.toml",
        "job-grpo.toml",
        "job-sft.toml",
        "qwen3vl-cpu.toml",
        "remote.toml",
        "small.toml",
    ]


def test_the_grpo_job_is_a_guest_that_the_serving_examples_have_room_for() -> None:
    job = validate(tomllib.loads((EXAMPLES / "job-grpo.toml").read_text()), GrpoConfig)
    for file in (EXAMPLES / "small.toml", EXAMPLES / "demo.toml"):
        engine = load_config(file).engines[job.rollout.engine]
        assert engine.reserved_for_rollout >= job.max_staleness + 2
    sft = validate(tomllib.loads((EXAMPLES / "job-sft.toml").read_text()))
    assert (job.model, job.rank, job.alpha) == (sft.model, sft.rank, sft.alpha)
    assert job.parent == f"{sft.name}/checkpoints/step-{sft.max_steps}"
