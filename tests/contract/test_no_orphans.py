"""No engine outlives its supervisor, however that dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from chatting import eventually

from engines.lifeline import group_members


@asynccontextmanager
async def supervised(tmp_path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A supervisor with its engine's process group; in the end the group must be gone."""
    root = Path(__file__).parents[2]
    script = Path(__file__).with_name("parent_of_fake.py")
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(tmp_path), str(tmp_path),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert parent.stdout is not None
    group = int(await asyncio.wait_for(parent.stdout.readline(), 30))
    assert len(group_members(group)) == 3  # the lifeline, the engine, and the lifeline's second watch
    yield parent, group
    await parent.wait()

    async def is_gone() -> bool:
        return group_members(group) == ()

    await eventually(is_gone)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
async def test_an_engine_dies_with_its_supervisor(tmp_path: Path, death: signal.Signals) -> None:
    async with supervised(tmp_path) as (parent, _):
        parent.send_signal(death)


@pytest.mark.timeout(60)
async def test_an_engine_dies_with_a_supervisor_that_kills_its_children_first(tmp_path: Path) -> None:
    async with supervised(tmp_path) as (parent, group):
        parent.send_signal(signal.SIGSTOP)  # else it would see the lifeline's end and sweep the group itself
        os.kill(group, signal.SIGKILL)
        parent.kill()
