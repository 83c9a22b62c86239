"""For all tests: property tests have no time limit of their own, since the machine is shared; GPU tests need a GPU."""

import shutil

import pytest
from hypothesis import settings

pytest_plugins = ("evidence",)

settings.register_profile("tandem", deadline=None)
settings.load_profile("tandem")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and shutil.which("nvidia-smi") is None:
        pytest.skip("needs a GPU, and nvidia-smi is not here")
