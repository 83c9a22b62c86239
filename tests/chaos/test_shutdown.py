"""SIGTERM with many open streams: no new request, every open answer whole, exit code 0, every row in the store."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from gateway_stack import CHAT, until
from scripted import DONE, Script, open_stream, replica
from server_process import BODY, running

from gateway.store import InteractionQuery, open_store

NUM_STREAMS = 100
WORDS = [f"word-{number} " for number in range(20)]


def answer_behind(gate: asyncio.Event) -> Script:
    """Its first word at once, the others when the gate opens."""

    async def answer(request: web.Request) -> web.StreamResponse:
        stream = await open_stream(request)
        for number, word in enumerate(WORDS):
            if number == 1:
                await gate.wait()
            await stream.write(event(request, word, "stop" if number == len(WORDS) - 1 else None))
        await stream.write(DONE)
        return stream

    return answer


def event(request: web.Request, word: str, finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": finish_reason}
    document = {"id": f"chatcmpl-{request.headers['X-Request-Id']}", "choices": [choice]}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


@pytest.mark.timeout(90)
async def test_sigterm_with_100_open_streams_finishes_them_all_and_exits_0(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with (
        replica(answer_behind(gate)) as engine,
        running(tmp_path, engine.endpoint, drain_timeout_s=60.0) as (process, url),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        streams = await asyncio.gather(*(open_one(session, url) for _ in range(NUM_STREAMS)))
        process.send_signal(signal.SIGTERM)
        await until(lambda: is_unready(session, url))
        await check_refused(session, url)
        assert process.returncode is None
        gate.set()
        answers = await asyncio.gather(*(finish(response, first) for response, first in streams))
        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert len(engine.ids) == NUM_STREAMS
    assert {text for _, text in answers} == {"".join(WORDS)}
    check_rows(tmp_path, {identity for identity, _ in answers})


async def open_one(session: aiohttp.ClientSession, url: str) -> tuple[aiohttp.ClientResponse, bytes]:
    response = await session.post(url + CHAT, json=BODY)
    assert response.status == 200
    return response, await response.content.readuntil(b"\n\n")


async def is_unready(session: aiohttp.ClientSession, url: str) -> bool:
    async with session.get(f"{url}/readyz") as response:
        assert response.status in (200, 503)
        return response.status == 503


async def check_refused(session: aiohttp.ClientSession, url: str) -> None:
    async with session.post(url + CHAT, json=BODY) as response:
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        error = (await response.json())["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == "unavailable"
    async with session.get(f"{url}/healthz") as response:
        assert response.status == 200


async def finish(response: aiohttp.ClientResponse, first: bytes) -> tuple[str, str]:
    """The id and the whole text of one stream, which ends as it should."""
    events = (first + await response.content.read()).strip().split(b"\n\n")
    assert events[-1] == b"data: [DONE]"
    documents = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    assert documents[-1]["choices"][0]["finish_reason"] == "stop"
    return documents[0]["id"], "".join(document["choices"][0]["delta"]["content"] for document in documents)


def check_rows(folder: Path, ids: set[str]) -> None:
    store = open_store(f"sqlite:///{folder}/data/tandem.db")
    try:
        rows = store.interactions.list(InteractionQuery(limit=2 * NUM_STREAMS)).rows
    finally:
        store.close()
    assert {row.id for row in rows} == ids
    assert len(ids) == NUM_STREAMS
    assert {(row.status, row.answer) for row in rows} == {(200, "".join(WORDS))}
