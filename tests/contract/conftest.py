"""One engine process per back end and session; models and adapters for both."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sglang_machine
from peft_adapters import MAX_LORAS, MakeAdapter, write_adapter

from engines.backends import BACK_ENDS
from engines.config import EngineConfig
from engines.served import ServedEngine
from engines.types import AdapterRef, VersionName

TOY_BASE = Path(__file__).parents[2] / "learners" / "toy" / "weights" / "base"
TINY_TEXT = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "head_dim": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
}


KINDS = ("fake", pytest.param("vllm", marks=pytest.mark.vllm), pytest.param("sglang", marks=pytest.mark.gpu))


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if kind != "fake":
        return Path(os.environ.get("TANDEM_TEST_MODEL", TOY_BASE))
    directory = tmp_path_factory.mktemp("fake-model")
    (directory / "config.json").write_text(json.dumps({"text_config": TINY_TEXT}))
    return directory


def settings(kind: str) -> dict[str, Any]:
    """What only this back end needs."""
    if kind == "fake":
        return {"args": {"tokens-per-s": 300}}
    if kind == "vllm":
        return {}
    return {
        "args": sglang_machine.arguments(),
        "env": sglang_machine.environment(sglang_machine.site()),
        "quantization": sglang_machine.quantization(),
    }


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
