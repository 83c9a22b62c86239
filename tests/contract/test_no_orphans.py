"""No engine outlives its supervisor, however that dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
from chatting import eventually

from engines.lifeline import group_members


async def supervised(tmp_path: Path) -> tuple[asyncio.subprocess.Process, int]:
    """A supervisor, and the process group of its engine."""
    root = Path(__file__).parents[2]
    script = Path(__file__).with_name("parent_of_fake.py")
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(tmp_path), str(tmp_path),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert parent.stdout is not None
    group = int(await asyncio.wait_for(parent.stdout.readline(), 30))
    assert len(group_members(group)) == 3  # the lifeline, the engine, and the lifeline's second watch
    return parent, group


async def left_of(parent: asyncio.subprocess.Process, group: int) -> tuple[int, ...]:
    """Who is still in the group when its supervisor has ended, once there is nobody or it has taken too long."""
    await parent.wait()

    async def is_gone() -> bool:
        return group_members(group) == ()

    with contextlib.suppress(TimeoutError):
        await eventually(is_gone)
    return group_members(group)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
async def test_an_engine_dies_with_its_supervisor(tmp_path: Path, death: signal.Signals) -> None:
    parent, group = await supervised(tmp_path)
    parent.send_signal(death)
    assert await left_of(parent, group) == ()


@pytest.mark.timeout(60)
async def test_an_engine_dies_with_a_supervisor_that_kills_its_children_first(tmp_path: Path) -> None:
    parent, group = await supervised(tmp_path)
    parent.send_signal(signal.SIGSTOP)  # else it would see the lifeline's end and sweep the group itself
    os.kill(group, signal.SIGKILL)
    parent.kill()
    assert await left_of(parent, group) == ()
