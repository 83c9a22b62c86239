from __future__ import annotations

from pathlib import Path

import pytest
from tiny_adapter import tiny_base

from engines.adapter import BaseModel


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def adapter_dir(tmp_path: Path) -> Path:
    return tmp_path / "adapter"
