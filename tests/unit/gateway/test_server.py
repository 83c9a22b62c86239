"""The real server process: SIGTERM drains, flushes and exits with 0."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import aiohttp
from gateway_stack import CHAT, faults, until
from server_process import BODY, running

from engines.fake import FakeEngine
from gateway.store import InteractionQuery, open_store


async def test_sigterm_finishes_what_is_under_way_and_exits_0(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, engine.endpoint) as (process, url), aiohttp.ClientSession() as session:
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
    async with running(tmp_path, engine.endpoint) as (process, url), aiohttp.ClientSession() as session:
        async with faults(engine.endpoint, hang_after_tokens=1):
            hanging = await session.post(url + CHAT, json=BODY)
            first = await hanging.content.readuntil(b"\n\n")
            assert json.loads(first.removeprefix(b"data: "))["model"] == "small@0"
        process.send_signal(signal.SIGTERM)
        await until(lambda: refuses(session, url))
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_drain_ends_after_its_time(tmp_path: Path, engine: FakeEngine) -> None:
    async with running(tmp_path, engine.endpoint, 0.1) as (process, url), aiohttp.ClientSession() as session:
        async with faults(engine.endpoint, hang_after_tokens=1):
            hanging = await session.post(url + CHAT, json=BODY)
            await hanging.content.readany()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
