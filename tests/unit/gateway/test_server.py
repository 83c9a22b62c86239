"""The real server process: SIGTERM drains, flushes and exits with 0."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from gateway_stack import CHAT, faults, until

from engines.fake import FakeEngine
from engines.process import free_port
from gateway.store import InteractionQuery, open_store

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
async def running(
    folder: Path, engine: FakeEngine, drain_timeout_s: float = 20.0
) -> AsyncIterator[tuple[Process, str]]:
    port = free_port()
    where = engine.endpoint
    here = str(Path(__file__).parent)
    arguments = (str(folder), str(port), where.url, where.token, here, str(drain_timeout_s))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, *arguments)
    url = f"http://127.0.0.1:{port}"
    try:
        await until(lambda: ready(url), 20)
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


async def test_sigterm_finishes_what_is_under_way_and_exits_0(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, engine) as (process, url), aiohttp.ClientSession() as session:
        slow = {**BODY, "messages": [{"role": "user", "content": "slow"}]}
        async with faults(engine.endpoint, hang_after_tokens=1):
            hanging = await session.post(url + CHAT, json=slow)
            first = await hanging.content.readuntil(b"\n\n")
        answered = await (await session.post(url + CHAT, json={**BODY, "stream": False})).json()
        process.send_signal(signal.SIGTERM)
        await until(lambda: refuses(session, url))
        assert process.returncode is None
        hanging.close()
        assert await asyncio.wait_for(process.wait(), 10) == 0
    store = open_store(f"sqlite:///{tmp_path}/data/tandem.db")
    rows = store.interactions.list(InteractionQuery()).rows
    store.close()
    statuses = {row.id: row.status for row in rows}
    assert statuses[answered["id"]] == 200
    assert statuses[json.loads(first.removeprefix(b"data: "))["id"]] == 499


async def refuses(session: aiohttp.ClientSession, url: str) -> bool:
    async with session.post(url + CHAT, json=BODY) as response:
        assert response.status in (200, 503)
        await response.read()
        return response.status == 503


async def test_second_signal_ends_the_waiting(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, engine) as (process, url), aiohttp.ClientSession() as session:
        async with faults(engine.endpoint, hang_after_tokens=1):
            hanging = await session.post(url + CHAT, json=BODY)
            first = await hanging.content.readuntil(b"\n\n")
            assert json.loads(first.removeprefix(b"data: "))["model"] == "small@0"
        process.send_signal(signal.SIGTERM)
        await until(lambda: refuses(session, url))
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_drain_ends_after_its_time(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, engine, 0.1) as (process, url), aiohttp.ClientSession() as session:
        async with faults(engine.endpoint, hang_after_tokens=1):
            hanging = await session.post(url + CHAT, json=BODY)
            await hanging.content.readany()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
