"""The same engine and gateway as the unit tests of the gateway, and that a refused request reached neither."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gateway_stack import Stack

_FOLDER = Path(__file__).parents[1] / "unit" / "gateway"
sys.path.insert(0, str(_FOLDER))
_spec = importlib.util.spec_from_file_location("gateway_fixtures", _FOLDER / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

engine, stack, url = _fixtures.engine, _fixtures.stack, _fixtures.url


@pytest.fixture
async def nothing_reaches_the_engine(stack: Stack, request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Counts completions that got a version, so that a refusal after the engine's answer would show."""
    before = _num_routed(stack)
    yield
    if "good" not in request.node.name:
        assert _num_routed(stack) == before


def _num_routed(stack: Stack) -> int:
    return sum('version="small@0"' in line for line in stack.services.metrics.render().decode().splitlines())
