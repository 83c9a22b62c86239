"""Whose child an adapter is, by its manifest."""

import pytest

from learners.config import SftConfig
from learners.manifest import parent_version


@pytest.mark.parametrize(
    ("parent", "version", "name"),
    [
        (None, None, None),
        ("/jobs/one/checkpoints/step-5", None, None),
        ("/jobs/one/checkpoints/step-5", "vqa@2", "vqa@2"),
        ("/registry/vqa@3", None, "vqa@3"),
        ("/registry/vqa@3", "vqa@2", "vqa@2"),
    ],
)
def test_a_parent_is_a_version_or_nothing(parent: str | None, version: str | None, name: str | None) -> None:
    config = SftConfig(model="/m", data="/d", parent=parent, parent_version=version)
    assert parent_version(config) == name
