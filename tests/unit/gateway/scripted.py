"""An engine that answers what the test says, in the test's own process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from gateway_stack import CHAT

from engines.types import Endpoint

Script = Callable[[web.Request], Awaitable[web.StreamResponse]]

PIECE = b'data: {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "data: {\\"error\\" "}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@dataclass
class Replica:
    """What it was asked: ids of the requests, and names of the models."""

    endpoint: Endpoint
    ids: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)


@asynccontextmanager
async def replica(answer: Script) -> AsyncIterator[Replica]:
    async def chat(request: web.Request) -> web.StreamResponse:
        made.ids.append(request.headers["X-Request-Id"])
        made.models.append(json.loads(await request.read())["model"])
        return await answer(request)

    app = web.Application()
    app.router.add_post(CHAT, chat)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made = Replica(Endpoint(f"http://127.0.0.1:{runner.addresses[0][1]}", "t"))
    try:
        yield made
    finally:
        await runner.cleanup()


def status(code: int) -> Script:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}} if code >= 300 else {"choices": []}, status=code)

    return answer


def pieces(*parts: bytes) -> Script:
    async def answer(request: web.Request) -> web.StreamResponse:
        stream = await open_stream(request)
        for part in parts:
            await stream.write(part)
            # Each part in a segment of its own.
            await asyncio.sleep(0.01)
        return stream

    return answer


async def open_stream(request: web.Request) -> web.StreamResponse:
    stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await stream.prepare(request)
    return stream


async def hang(_request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError
