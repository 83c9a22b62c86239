"""Starts a fake engine, prints its process group, and waits to be killed. Arguments: log folder, model folder."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from engines.config import EngineConfig
from engines.fake import FakeEngine


async def main() -> None:
    engine = FakeEngine("orphan", EngineConfig(model=sys.argv[2], kind="fake"), Path(sys.argv[1]))
    await engine.start()
    print(engine.process.group, flush=True)
    await engine.process.wait_exit()


asyncio.run(main())
