"""A server elsewhere, as far as a probe sees it: it answers like OpenAI's API and lacks what the test says."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from engines.capabilities import Ability

MODEL = "org/theirs"
REFUSED = {"object": "error", "message": "not supported", "type": "invalid_request_error", "code": 400}
Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse | None]]


@dataclass
class OpenAiServer:
    """`lacks` is refused with 400; `ignores` is answered as if it had not been asked for.

    `meddle` sees each chat request first, and may answer it. `id_format` makes ids of a count where request ids are
    lacking. `seen` are the bodies, `keys` the Authorization headers.
    """

    lacks: frozenset[Ability] = frozenset()
    ignores: frozenset[Ability] = frozenset()
    models: Sequence[str] = (MODEL,)
    key: str = ""
    status: int = 200
    meddle: Answer | None = None
    id_format: str = "{}"
    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    async def list_models(self, request: web.Request) -> web.StreamResponse:
        self.keys.append(request.headers.get("Authorization"))
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"detail": "no"}, status=401)
        if self.status != 200:
            return web.Response(status=self.status)
        return web.json_response({"object": "list", "data": [{"id": name, "root": name} for name in self.models]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.keys.append(request.headers.get("Authorization"))
        meddled = await self.meddle(request, body) if self.meddle is not None else None
        if meddled is not None:
            return meddled
        asked = {ability for ability, is_asked in _asked(body).items() if is_asked}
        if asked & self.lacks:
            return web.json_response(REFUSED, status=400)
        is_given = {ability: ability in asked and ability not in self.ignores for ability in Ability}
        completion_id = f"chatcmpl-{request.headers['X-Request-Id']}"
        if Ability.REQUEST_IDS in self.lacks | self.ignores:
            completion_id = self.id_format.format(len(self.seen))
        return _answer(body, completion_id, is_given)


def _asked(body: dict[str, Any]) -> dict[Ability, bool]:
    return {
        Ability.IMAGES: isinstance(body["messages"][0]["content"], list),
        Ability.STREAMING: bool(body.get("stream")),
        Ability.LOGPROBS: bool(body.get("logprobs")) and not body.get("top_logprobs"),
        Ability.TOP_LOGPROBS: bool(body.get("top_logprobs")),
        Ability.N: body.get("n", 1) > 1,
        Ability.SEED: "seed" in body,
        Ability.TOKEN_IDS: bool(body.get("return_token_ids")),
    }


def _answer(body: dict[str, Any], completion_id: str, given: dict[Ability, bool]) -> web.Response:
    drawn = str(body["seed"]) if given[Ability.SEED] else ""
    drawn += "image" if given[Ability.IMAGES] else ""
    text = hashlib.sha256(drawn.encode()).hexdigest()[:8]
    if given[Ability.STREAMING]:
        event = {"id": completion_id, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
        raw = f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n"
        return web.Response(text=raw, content_type="text/event-stream")
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if given[Ability.LOGPROBS] or given[Ability.TOP_LOGPROBS]:
        choice["logprobs"] = {"content": [{"token": text, "logprob": -0.5, "top_logprobs": []}]}
    if given[Ability.TOKEN_IDS]:
        choice["token_ids"] = [1, 2]
    choices = [{"index": index, **choice} for index in range(body["n"] if given[Ability.N] else 1)]
    usage = {"prompt_tokens": 70 if given[Ability.IMAGES] else 10, "completion_tokens": 2, "total_tokens": 12}
    return web.json_response({"id": completion_id, "model": body["model"], "choices": choices, "usage": usage})


@asynccontextmanager
async def listening(server: OpenAiServer, port: int = 0) -> AsyncIterator[OpenAiServer]:
    """On a loopback port; `server.url` is what `[engines.X] url` takes."""
    app = web.Application()
    app.router.add_get("/v1/models", server.list_models)
    app.router.add_post("/v1/chat/completions", server.chat)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


async def never(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError
