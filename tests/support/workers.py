"""A pytest plugin: how `-n` shares out the tests.

The tests of a file run on one worker, those of a folder too where they share a cluster. All that start vLLM run on one:
two at once would take each other's time and memory.
"""

from __future__ import annotations

from typing import Any

import pytest

CHAOS = "tests/chaos/"
VLLM = ("tests/contract/", "tests/e2e/test_loop.py", "tests/e2e/test_parity.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class OneVllmAtATime(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(VLLM):
                return "vllm"
            return CHAOS if nodeid.startswith(CHAOS) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # in the order of the folders, so the long ones come first
    return OneVllmAtATime(config, log)
