"""What a directory says of the fake's model: its file `fake.json`, if it has one."""

from __future__ import annotations

from pathlib import Path

from engines.wire import Wire

MODEL_FILE = "fake.json"


class FakeModel(Wire):
    weights: str = ""
    """What its base answers by, as an adapter does by its hash: other weights, other answers."""
    starts: bool = True
    """False: the process ends before it listens."""


def read_model(directory: str) -> FakeModel:
    """The default for a directory without the file, and for none."""
    path = Path(directory) / MODEL_FILE
    return FakeModel.model_validate_json(path.read_bytes()) if directory and path.exists() else FakeModel()
