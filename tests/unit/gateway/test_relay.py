from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from gateway_stack import (
    CHAT,
    Stack,
    call_engine,
    data_url,
    faults,
    image_part,
    listen,
    open_engine,
    open_stack,
    picture,
    until,
)

from engines.errors import Unavailable
from engines.fake import FakeEngine
from engines.types import Endpoint, VersionName
from gateway.drain import Drain

MESSAGES: list[Any] = [{"role": "user", "content": "what colour is it?"}]


def sdk(url: str, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, **options)


async def test_answer_names_version_replica_and_request(stack: Stack) -> None:
    response = await stack.chat()
    assert response.status_code == 200
    assert response.headers["x-tandem-version"] == "small@0"
    assert response.headers["x-tandem-replica"] == "small/0"
    body = response.json()
    assert body["id"] == f"chatcmpl-{response.headers['x-request-id']}"
    assert uuid.UUID(response.headers["x-request-id"]).version == 7
    assert body["model"] == "small@0"


async def test_bytes_are_those_of_the_engine(stack: Stack, engine: FakeEngine) -> None:
    through = (await stack.chat("same")).json()
    body = {"model": "small@0", "messages": [{"role": "user", "content": "same"}]}
    direct = await call_engine(engine.endpoint, "POST", CHAT, body)
    assert through["choices"] == direct["choices"]
    assert through["usage"] == direct["usage"]


async def test_openai_sdk_streams_what_it_gets_whole(url: str) -> None:
    async with sdk(url) as client:
        whole = await client.chat.completions.create(model="vqa", messages=MESSAGES)
        text, ids = "", set()
        async for chunk in await client.chat.completions.create(model="vqa", messages=MESSAGES, stream=True):
            ids.add(chunk.id)
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(ids) == 1


async def test_sync_openai_sdk_sees_models_and_errors(url: str) -> None:
    def use() -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["vqa", "small@0"]
            with pytest.raises(openai.NotFoundError, match="there are: small@0, vqa") as caught:
                client.chat.completions.create(model="vqq", messages=MESSAGES)
            assert caught.value.param == "model"

    await asyncio.to_thread(use)


async def test_images_reach_the_engine_in_both_spellings(stack: Stack) -> None:
    url = data_url(picture())
    text = {"type": "text", "text": "what is it?"}
    bare = await stack.chat([{"type": "image_url", "image_url": url}, text])
    nested = await stack.chat([{"type": "image_url", "image_url": {"url": url}}, text])
    other = await stack.chat([image_part(picture(size=(17, 16))), text])
    answers = [response.json()["choices"][0]["message"]["content"] for response in (bare, nested, other)]
    assert answers[0] == answers[1] != answers[2]


async def test_first_byte_is_there_before_the_last_token(url: str, engine: FakeEngine) -> None:
    async with faults(engine.endpoint, hang_after_tokens=2), aiohttp.ClientSession() as session:
        body = {"model": "vqa", "messages": MESSAGES, "stream": True}
        async with session.post(url + CHAT, json=body) as response, asyncio.timeout(5):
            assert (await response.content.readany()).startswith(b"data: ")


@pytest.mark.parametrize("stream", [True, False])
async def test_hang_up_aborts_the_engines_work(stack: Stack, url: str, engine: FakeEngine, stream: bool) -> None:
    async with faults(engine.endpoint, hang_after_tokens=1):
        num_aborted = (await engine.stats()).num_aborted
        body = {"model": "vqa", "messages": MESSAGES, "stream": stream}
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(url + CHAT, json=body))
            await until(lambda: _running(engine, 1))
            if stream:
                (await asking).close()
            else:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: _aborted(engine, num_aborted + 1))
    await until(lambda: stack.services.drain.num_in_flight == 0)
    assert (await engine.stats()).num_running == 0


async def _running(engine: FakeEngine, expected: int) -> bool:
    return (await engine.stats()).num_running == expected


async def _aborted(engine: FakeEngine, expected: int) -> bool:
    return (await engine.stats()).num_aborted == expected


async def test_engines_error_becomes_ours(stack: Stack, engine: FakeEngine) -> None:
    async with faults(engine.endpoint, chat_status=500):
        response = await stack.chat()
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "engine_fault"
    assert "fault was set" not in response.text


async def test_no_connection_is_503_with_retry_after(stack: Stack, tmp_path: Path) -> None:
    async with open_stack(tmp_path, Endpoint("http://127.0.0.1:9", "t")) as alone:
        response = await alone.chat()
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_no_ready_replica_is_503(tmp_path: Path, engine: FakeEngine) -> None:
    async with open_stack(tmp_path, engine.endpoint) as alone:
        assert (await alone.http.get("/readyz")).status_code == 200
        alone.services.routes.withdraw("small/0")
        assert (await alone.chat()).status_code == 503
        assert (await alone.http.get("/readyz")).status_code == 503
        assert (await alone.http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("endpoints", [(), (Endpoint("http://127.0.0.1:9", "t"), Endpoint("http://127.0.0.1:10", "t"))])
async def test_with_nobody_to_ask_each_request_is_503_and_nothing_grows(
    tmp_path: Path, endpoints: tuple[Endpoint, ...]
) -> None:
    async with open_stack(tmp_path, *endpoints) as alone:
        sizes = []
        for stream in (True, False):
            for _ in range(30):
                response = await alone.chat(stream=stream)
                assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            sizes.append(size_of(alone))
        assert sizes[0] == sizes[1]
        for name in alone.services.routes.snapshot.replicas:
            alone.services.routes.withdraw(name)
        assert (await alone.chat()).status_code == 503
        assert (await alone.http.get("/readyz")).status_code == 503
        assert (await alone.http.get("/healthz")).status_code == 200


def size_of(stack: Stack) -> tuple[int, int, int]:
    """Tasks, label sets of metrics, and what is held or under way."""
    services = stack.services
    held = services.routes.num_held(VersionName("small", 0)) + services.drain.num_in_flight
    return len(asyncio.all_tasks()), services.metrics.render().count(b"\n"), held


async def test_engine_death_in_mid_stream_ends_in_an_error_event(tmp_path: Path) -> None:
    async with (
        open_engine(tmp_path) as engine,
        open_stack(tmp_path, engine.endpoint) as alone,
        listen(alone.app) as url,
    ):
        await call_engine(engine.endpoint, "POST", "/tandem/faults", {"die_after_tokens": 2})
        async with sdk(url) as client:
            with pytest.raises(openai.APIError, match="broke off"):
                async for _ in await client.chat.completions.create(model="vqa", messages=MESSAGES, stream=True):
                    pass


async def test_error_after_half_an_event_is_an_event_of_its_own(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 999\r\n\r\n")
        writer.write(b'data: {"id":"chatcmpl-1","choi')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, open_stack(tmp_path, Endpoint(f"http://127.0.0.1:{port}", "t")) as alone:
        response = await alone.chat(stream=True)
    half, event = response.text.strip().split("\n\n")
    assert half == 'data: {"id":"chatcmpl-1","choi'
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == "engine_down"


async def test_silence_within_a_stream_ends_in_a_deadline_event(tmp_path: Path, engine: FakeEngine) -> None:
    async with (
        open_stack(tmp_path, engine.endpoint, gap_timeout_s=0.2) as alone,
        faults(engine.endpoint, hang_after_tokens=1),
    ):
        response = await alone.chat(stream=True)
    event = response.text.strip().split("\n\n")[-1]
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


async def test_whole_answer_has_a_deadline(tmp_path: Path, engine: FakeEngine) -> None:
    async with (
        open_stack(tmp_path, engine.endpoint, request_timeout_s=0.2) as alone,
        faults(engine.endpoint, hang_after_tokens=1),
    ):
        response = await alone.chat()
    assert response.status_code == 504


async def test_drain_refuses_new_and_waits_for_old(tmp_path: Path, engine: FakeEngine) -> None:
    async with (
        open_stack(tmp_path, engine.endpoint) as alone,
        listen(alone.app) as url,
        aiohttp.ClientSession() as session,
    ):
        drain = alone.services.drain
        async with faults(engine.endpoint, hang_after_tokens=1):
            asking = asyncio.create_task(session.post(url + CHAT, json={"model": "vqa", "messages": MESSAGES}))
            await until(lambda: drain.num_in_flight == 1)
            drain.begin()
            refused = await alone.chat()
            assert (refused.status_code, refused.headers["connection"]) == (503, "close")
            assert (await alone.http.get("/readyz")).status_code == 503
            assert not await drain.wait_idle(0.05)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        assert await drain.wait_idle(5)


async def test_drain_waits_for_a_publish_and_lets_none_begin() -> None:
    drain = Drain()
    with drain.publishing(), drain.in_flight():
        drain.begin()
        with pytest.raises(Unavailable, match="begins no publish"), drain.publishing():
            pass
        assert not drain.is_idle
    waiting = asyncio.create_task(drain.wait_idle(5))
    assert await waiting
    with drain.in_flight():
        assert not await drain.wait_idle(0.01)


@asynccontextmanager
async def closing_engine(num_answers: int) -> AsyncIterator[tuple[Endpoint, list[asyncio.StreamWriter]]]:
    """Its first connection answers so many requests and is closed on the next one; the others answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        left = num_answers if len(connections) == 1 else 1
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.findall(rb"(?i)content-length: (\d+)", head)[0]))
                if left == 0:
                    break
                left -= 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    connections: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "t"), connections


async def test_kept_connection_that_the_engine_closed_is_replaced(tmp_path: Path) -> None:
    async with closing_engine(1) as (endpoint, connections), open_stack(tmp_path, endpoint) as alone:
        assert [(await alone.chat()).status_code for _ in range(2)] == [200, 200]
        assert len(connections) == 2


async def test_new_connection_that_the_engine_closes_is_not_asked_again(tmp_path: Path) -> None:
    async with closing_engine(0) as (endpoint, connections), open_stack(tmp_path, endpoint) as alone:
        assert (await alone.chat()).status_code == 503
        assert len(connections) == 1


async def test_metrics_count_what_was_answered(stack: Stack) -> None:
    await stack.chat(stream=True)
    await stack.chat(n=0)
    text = (await stack.http.get("/metrics")).text
    assert 'tandem_requests_total{model="vqa",status="200",version="small@0"}' in text
    assert 'tandem_requests_total{model="none",status="400",version="none"}' in text
    for name in ("ttft_seconds_count", "overhead_seconds_count", "in_flight", "replica_up", "alias_generation"):
        assert f"tandem_{name}" in text
