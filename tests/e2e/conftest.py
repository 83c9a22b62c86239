from pathlib import Path

import pytest
from stack import train_sft


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small base after a short LoRA SFT: adapter, manifest and probe are real."""
    return train_sft(tmp_path_factory.mktemp("trained"))
