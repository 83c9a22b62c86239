"""For all tests: one thread, since models are small; property tests without a time limit; GPU tests need a GPU."""

import os
import shutil

import pytest
from hypothesis import settings

pytest_plugins = ("evidence", "workers")

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: with others on the cores, its threads wait for each other

settings.register_profile("tandem", deadline=None)
settings.load_profile("tandem")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and shutil.which("nvidia-smi") is None:
        pytest.skip("needs a GPU, and nvidia-smi is not here")
