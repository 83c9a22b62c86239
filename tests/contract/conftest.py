"""One engine process per subject and session; models and adapters for each.

A subject is a back end with a model family and a number format. On a CPU `make test` takes the fake and one of vLLM's,
the others are slow; on a GPU `pytest -m gpu` takes those of SGLang, and `-k vllm` those of vLLM.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
from peft_adapters import MAX_LORAS, MakeAdapter, write_adapter
from subjects import SUBJECTS, Subject, settings
from toys import TOYS, Toy

from engines.backends import BACK_ENDS
from engines.config import EngineConfig
from engines.served import ServedEngine
from engines.types import AdapterRef, VersionName

TINY_TEXT = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "head_dim": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
}


@pytest.fixture(scope="session", params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    one: Subject = request.param
    return one


@pytest.fixture(scope="session")
def kind(subject: Subject) -> str:
    return subject.kind


@pytest.fixture(scope="session")
def model(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if subject.kind == "fake":
        directory = tmp_path_factory.mktemp("fake-model")
        (directory / "config.json").write_text(json.dumps({"text_config": TINY_TEXT}))
        return directory
    toy = TOYS[subject.family]
    if subject.scheme == "w4a16":
        return _w4a16(toy, tmp_path_factory.mktemp("w4a16"))
    return toy.fp8 if subject.scheme == "fp8" else toy.base


def _w4a16(toy: Toy, directory: Path) -> Path:
    from learners.toy.quantize import quantize
    from learners.toy.schemes import W4A16

    quantize(toy.base, directory, W4A16)
    return directory


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(kind: str, model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedEngine]:
    config = EngineConfig(
        model=str(model), kind=kind, max_loras=MAX_LORAS, reserved_for_rollout=1, max_lora_rank=16, **settings(kind)
    )
    served = BACK_ENDS[kind]("small", config, tmp_path_factory.mktemp("logs"))
    await served.start()
    yield served
    await served.stop()


@pytest.fixture(scope="session")
def serial_numbers() -> Iterator[int]:
    return count(1)


@pytest.fixture
def make_adapter(model: Path, tmp_path: Path, serial_numbers: Iterator[int]) -> MakeAdapter:
    """Writes an adapter of its own version, slot id and weights; keywords go to `write_adapter`."""

    def make(alias: str = "vqa", **options: int) -> AdapterRef:
        number = next(serial_numbers)
        path = write_adapter(tmp_path / f"adapter-{number}", model, **{"seed": number, **options})
        return AdapterRef(VersionName(alias, number), number, path)

    return make
