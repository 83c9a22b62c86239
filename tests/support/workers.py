"""A pytest plugin: how `-n` shares out the tests.

The tests of a file run on one worker. So do all that start vLLM or a Ray cluster, in the order of their files: two at
once would take each other's time and memory.
"""

from __future__ import annotations

from typing import Any

import pytest

ENGINES = ("tests/chaos/", "tests/contract/", "tests/e2e/", "tests/unit/engines/test_placement.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class OneEngineAtATime(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "engines" if nodeid.startswith(ENGINES) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # the engines' tests are the longest and come first
    return OneEngineAtATime(config, log)
