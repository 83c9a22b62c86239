"""No engine outlives its supervisor, however that dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from chatting import eventually

from engines.lifeline import group_members


@pytest.mark.timeout(60)
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
async def test_an_engine_dies_with_its_supervisor(tmp_path: Path, death: signal.Signals) -> None:
    root = Path(__file__).parents[2]
    script = Path(__file__).with_name("parent_of_fake.py")
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(tmp_path), str(tmp_path),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert parent.stdout is not None
    group = int(await asyncio.wait_for(parent.stdout.readline(), 30))
    assert len(group_members(group)) == 2
    parent.send_signal(death)
    await parent.wait()

    async def is_gone() -> bool:
        return group_members(group) == ()

    await eventually(is_gone)
