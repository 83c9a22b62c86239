"""kill -9 of the gateway's process in the midst of feedback: what it acknowledged is there exactly once."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import aiohttp
from gateway_stack import CHAT
from server_process import BODY, running

from engines.fake import FakeEngine
from gateway.store import open_store

NUM_ROWS = 500
NUM_CLIENTS = 8


async def test_acknowledged_feedback_outlives_a_kill_of_the_gateway(tmp_path: Path, engine: FakeEngine) -> None:
    acknowledged: dict[int, str] = {}
    kill_at = random.Random(3).randint(NUM_ROWS // 4, NUM_ROWS // 2)
    async with running(tmp_path, engine.endpoint) as (process, url), aiohttp.ClientSession() as session:
        async with session.post(url + CHAT, json={**BODY, "stream": False}) as response:
            completion = (await response.json())["id"]
        enough = asyncio.Event()
        sending = asyncio.create_task(send_all(session, url, completion, acknowledged, enough, kill_at))
        await asyncio.wait_for(enough.wait(), 60)
        process.kill()
        await process.wait()
        await sending
    assert kill_at <= len(acknowledged) < NUM_ROWS
    assert set(acknowledged.values()) <= set(stored(tmp_path))

    async with running(tmp_path, engine.endpoint) as (_, url), aiohttp.ClientSession() as session:
        again: dict[int, str] = {}
        await send_all(session, url, completion, again, asyncio.Event(), NUM_ROWS)
    assert again.items() >= acknowledged.items()
    assert sorted(stored(tmp_path)) == sorted(again.values())
    assert len(again) == NUM_ROWS


async def send_all(
    session: aiohttp.ClientSession,
    url: str,
    completion: str,
    acknowledged: dict[int, str],
    enough: asyncio.Event,
    num_enough: int,
) -> None:
    """Sends row N under the key N, from several clients at once, until all are sent or the gateway is gone."""
    rows = iter(range(NUM_ROWS))

    async def send() -> None:
        for row in rows:
            body: dict[str, Any] = {"completion_id": completion, "metric": "rating", "value": row / NUM_ROWS}
            headers = {"Idempotency-Key": f"row-{row}"}
            try:
                async with session.post(f"{url}/v1/feedback", json=body, headers=headers) as response:
                    assert response.status in (200, 201)
                    acknowledged[row] = (await response.json())["id"]
            except aiohttp.ClientError:
                return
            if len(acknowledged) >= num_enough:
                enough.set()

    await asyncio.gather(*(send() for _ in range(NUM_CLIENTS)))


def stored(folder: Path) -> list[str]:
    store = open_store(f"sqlite:///{folder}/data/tandem.db")
    try:
        return [row.id for row in store.feedback.of_metric("rating")]
    finally:
        store.close()
