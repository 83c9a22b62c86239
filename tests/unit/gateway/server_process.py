"""The real server process of a gateway over an engine that runs, for the tests that signal or kill it."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from gateway_stack import until

from engines.process import free_port
from engines.types import Endpoint

SERVER = """
import sys
import uvloop
from pathlib import Path
sys.path.insert(0, sys.argv[5])
from gateway_stack import make_config, open_services
from engines.types import Endpoint
from gateway.server import run

async def main():
    config = make_config(Path(sys.argv[1]), port=int(sys.argv[2]), drain_timeout_s=float(sys.argv[6]))
    services = open_services(config, Endpoint(sys.argv[3], sys.argv[4]))
    await run(services)
    await services.recorder.close()
    services.store.close()

uvloop.run(main())
"""
BODY = {"model": "vqa", "messages": [{"role": "user", "content": "long"}], "stream": True}


@asynccontextmanager
async def running(folder: Path, where: Endpoint, drain_timeout_s: float = 20.0) -> AsyncIterator[tuple[Process, str]]:
    port = free_port()
    here = str(Path(__file__).parent)
    arguments = (str(folder), str(port), where.url, where.token, here, str(drain_timeout_s))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, *arguments)
    url = f"http://127.0.0.1:{port}"
    try:
        await until(lambda: ready(url), 60)
        yield process, url
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ready(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/readyz") as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False
