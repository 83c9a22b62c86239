"""Clients that hang up at every point of a request, and clients that never read: nothing of them is left."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from aiohttp import web
from gateway_stack import CHAT, Stack, faults, listen, open_engine, open_stack, until
from scripted import PIECE, Script, open_stream, replica

from engines.fake import FakeEngine
from engines.types import VersionName

NUM_HANG_UPS = 500
NUM_AT_ONCE = 20
BASE = VersionName("small", 0)
# Where the client hangs up: within the head, within the body, at once, while the engine works, after some bytes.
MOMENTS = ("head", "body", "sent", "working", "answering")


@pytest.fixture(scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FakeEngine]:
    async with open_engine(tmp_path_factory.mktemp("engine")) as engine:
        yield engine


def request_bytes(stream: bool) -> tuple[bytes, bytes]:
    """Head and body."""
    body = json.dumps({"model": "vqa", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n", body


async def hang_up(url: str, stack: Stack, stream: bool, moment: str) -> None:
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    head, body = request_bytes(stream)
    sent = {"head": head[: len(head) // 2], "body": head + body[: len(body) // 2]}.get(moment, head + body)
    writer.write(sent)
    await writer.drain()
    if moment == "working":
        await until(lambda: stack.services.routes.num_held(BASE) > 0)
    if moment == "answering" and stream:
        assert (await reader.readuntil(b"data: ")).startswith(b"HTTP/1.1 200")
    writer.transport.abort()


@pytest.mark.timeout(90)
async def test_500_clients_that_hang_up_leave_nothing(tmp_path: Path, engine: FakeEngine) -> None:
    async with open_stack(tmp_path, engine.endpoint) as stack, listen(stack.app) as url:
        # The connection over which the test itself looks at the engine.
        await engine.stats()
        num_before = num_connections(engine.endpoint.url)
        turns = asyncio.Semaphore(NUM_AT_ONCE)

        async def one(number: int) -> None:
            async with turns:
                await hang_up(url, stack, number // len(MOMENTS) % 2 == 0, MOMENTS[number % len(MOMENTS)])

        async with faults(engine.endpoint, hang_after_tokens=1):
            await asyncio.gather(*(one(number) for number in range(NUM_HANG_UPS)))
            await until(lambda: is_idle(engine), 30)
        await until(lambda: num_connections(engine.endpoint.url) <= num_before)
        await check_nothing_is_left(stack)
        # Each stream that had begun is one that the engine aborted.
        assert (await engine.stats()).num_aborted >= NUM_HANG_UPS // len(MOMENTS) // 2
        assert (await stack.chat()).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_one_hang_up_is_one_abort(tmp_path: Path, engine: FakeEngine, stream: bool) -> None:
    async with (
        open_stack(tmp_path, engine.endpoint) as stack,
        listen(stack.app) as url,
        faults(engine.endpoint, hang_after_tokens=1),
    ):
        before = await engine.aborts()
        where = urlsplit(url)
        _, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(b"".join(request_bytes(stream)))
        await until(lambda: is_running(engine))
        writer.transport.abort()
        await until(lambda: is_idle(engine))
        assert len(await engine.aborts()) == len(before) + 1
        await check_nothing_is_left(stack)


async def is_running(engine: FakeEngine) -> bool:
    return (await engine.stats()).num_running > 0


async def is_idle(engine: FakeEngine) -> bool:
    return (await engine.stats()).num_running == 0


async def check_nothing_is_left(stack: Stack) -> None:
    services = stack.services
    await until(lambda: services.drain.is_idle)
    assert services.routes.num_held(BASE) == 0
    assert services.routes.load_of("small/0") == 0
    assert services.metrics.registry.get_sample_value("tandem_in_flight") == 0


def num_connections(url: str) -> int:
    """Of this process to or at the URL's port, counted at its far ends."""
    port = urlsplit(url).port
    open_ones = [c for c in psutil.Process().net_connections("tcp4") if c.status == psutil.CONN_ESTABLISHED]
    return sum(1 for connection in open_ones if connection.raddr and connection.raddr.port == port)


def endless(ended: asyncio.Event) -> Script:
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            stream = await open_stream(request)
            while True:
                await stream.write(PIECE * 100)
        finally:
            ended.set()

    return answer


async def huge(_request: web.Request) -> web.StreamResponse:
    return web.json_response({"choices": [], "padding": "x" * (64 << 20)})


@asynccontextmanager
async def deaf_client(url: str, stream: bool) -> AsyncIterator[int]:
    """Asks and never reads; its own port."""
    where = urlsplit(url)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (where.hostname, where.port))
        await asyncio.get_running_loop().sock_sendall(client, b"".join(request_bytes(stream)))
        yield client.getsockname()[1]


async def test_client_that_never_reads_a_stream_is_a_hang_up(tmp_path: Path) -> None:
    ended = asyncio.Event()
    async with (
        replica(endless(ended)) as engine,
        open_stack(tmp_path, engine.endpoint) as stack,
        listen(stack.app, write_timeout_s=0.3) as url,
        deaf_client(url, stream=True) as port,
    ):
        await asyncio.wait_for(ended.wait(), 30)
        await check_nothing_is_left(stack)
        await until(lambda: not is_served(url, port))
        text = (await stack.http.get("/metrics")).text
        assert 'tandem_requests_total{model="vqa",status="499",version="small@0"} 1.0' in text


async def test_client_that_never_reads_a_whole_answer_loses_its_connection(tmp_path: Path) -> None:
    async with (
        replica(huge) as engine,
        open_stack(tmp_path, engine.endpoint) as stack,
        listen(stack.app, write_timeout_s=0.3) as url,
        deaf_client(url, stream=False) as port,
    ):
        await until(lambda: engine.ids)
        await check_nothing_is_left(stack)
        await until(lambda: not is_served(url, port))


def is_served(url: str, client_port: int) -> bool:
    """Whether the gateway, which this process is, still has its end of the client's connection."""
    ends = {
        (c.laddr.port, c.raddr.port)
        for c in psutil.Process().net_connections("tcp4")
        if c.raddr and c.status == psutil.CONN_ESTABLISHED
    }
    return (urlsplit(url).port, client_port) in ends
