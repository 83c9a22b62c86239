from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import learners.toy

if TYPE_CHECKING:
    from test_grpo_loop import Job

    from learners.data.collate import Encoder

BASE = Path(learners.toy.__file__).parent / "weights" / "base"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    from transformers import AutoProcessor

    from learners.data.collate import Encoder

    return Encoder(AutoProcessor.from_pretrained(BASE, local_files_only=True))


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """Made with its settings."""
    from test_grpo_loop import Job  # not before pytest has rewritten its assertions

    return lambda **settings: Job(tmp_path, **settings)
