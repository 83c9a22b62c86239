from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from acting import MAX_LORAS
from tiny_adapter import tiny_base

from engines.actor import EngineActor
from engines.adapter import BaseModel
from engines.config import EngineConfig


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def adapter_dir(tmp_path: Path) -> Path:
    return tmp_path / "adapter"


@pytest_asyncio.fixture
async def actor(tmp_path: Path) -> AsyncIterator[EngineActor]:
    config = EngineConfig(model=str(tmp_path), kind="fake", max_loras=MAX_LORAS)
    actor = EngineActor("small", config, tmp_path / "logs", tmp_path / "copies")
    await actor.start()
    yield actor
    await actor.stop()
