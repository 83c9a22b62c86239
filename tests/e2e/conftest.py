from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from stack import WEIGHTS, train_sft


@pytest.fixture(scope="session")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Of a small base: a checkpoint of a short LoRA SFT, made once; adapter, manifest and probe are real."""
    return cache(lambda base: train_sft(tmp_path_factory.mktemp("trained"), base))


@pytest.fixture(scope="session")
def trained(trained_on: Callable[[Path], Path]) -> Path:
    """Of the small Qwen3-VL."""
    return trained_on(WEIGHTS / "base")
