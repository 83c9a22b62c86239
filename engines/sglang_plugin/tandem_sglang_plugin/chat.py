"""Answers chat completions: one request of SGLang's for each sample, all read to their end whatever the client does."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from .asgi import HungUp, Receive, Scope, Send, header, read_body, send_event, send_json, start_events
from .chat_answer import Heading, Usage, chunk, usage_chunk, whole_answer
from .chat_request import ChatRequest, Dialect, read_request
from .inner import Answer, Exchange
from .inside import Inside
from .refusal import Refusal
from .requests import Requests
from .settings import Settings
from .shelf import AdapterShelf

PATH = "/v1/chat/completions"
DONE = b"[DONE]"


class Chat:
    """`POST /v1/chat/completions`."""

    def __init__(self, inside: Inside, requests: Requests, shelf: AdapterShelf, settings: Settings) -> None:
        self._inside = inside
        self._requests = requests
        self._shelf = shelf
        self._settings = settings
        self._known_dialect: Dialect | None = None

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `Refusal` before anything is sent."""
        try:
            request = read_request(await read_body(receive), self._dialect())
        except HungUp:
            return
        self._check_name(request.version)
        request_id = header(scope, b"x-request-id").decode("latin-1") or uuid.uuid4().hex
        heading = Heading(request_id, request.version, int(time.time()))
        begun = [
            self._requests.begin(scope, request.version, PATH, request.sample(index))
            for index in range(request.num_samples)
        ]
        ids, exchanges = [one[0] for one in begun], [one[1] for one in begun]
        async with self._aborted_when_gone(scope, receive, ids):
            statuses = await asyncio.gather(*(exchange.status() for exchange in exchanges))
            if any(status != 200 for status in statuses):
                await self._requests.end(
                    scope, [one for one, status in zip(ids, statuses, strict=True) if status == 200]
                )
                raise await _refusal(exchanges, statuses)
            usage = Usage()
            if request.is_stream:
                await _stream(send, request, heading, exchanges, usage)
                self._requests.hit_tokens += usage.hit
                await send_event(send, DONE, is_last=True)
            else:
                samples = [Answer(200, await exchange.rest()).json() for exchange in exchanges]
                document = whole_answer(heading, samples, usage, wants_ids=request.wants_ids)
                self._requests.hit_tokens += usage.hit
                await send_json(send, 200, document)

    @asynccontextmanager
    async def _aborted_when_gone(self, scope: Scope, receive: Receive, ids: list[str]) -> AsyncIterator[None]:
        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if self._requests.are_inside(ids):
                self._requests.num_aborted += 1
                await self._requests.end(scope, ids)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()

    def _check_name(self, version: str) -> None:
        if self._shelf.failure:
            raise Refusal(503, "engine_down", f"the engine must be restarted: {self._shelf.failure}")
        if not self._shelf.has(version):
            raise Refusal(404, "not_found", f"{version[:80]} is not loaded here", param="model")

    def _dialect(self) -> Dialect:
        """Read at the first request, when the tokenizer is there, and kept: a look at its vocabulary takes long."""
        if self._known_dialect is None:
            never = self._inside.ids_of(self._settings.never_sampled)
            self._known_dialect = Dialect(self._settings.base, never, self._inside.is_seeded)
        return self._known_dialect


async def _refusal(exchanges: list[Exchange], statuses: list[int]) -> Refusal:
    """What SGLang says of the first sample that it refused."""
    status, exchange = next(pair for pair in zip(statuses, exchanges, strict=True) if pair[0] != 200)
    said = Answer(status, await exchange.rest()).reason()
    if 400 <= status < 500:
        return Refusal(status, "invalid_request", said)
    return Refusal(status, "engine_fault", "the engine failed at this request; its log says why", said)


async def _stream(send: Send, request: ChatRequest, heading: Heading, exchanges: list[Exchange], usage: Usage) -> None:
    await start_events(send)
    async for index, event in _merged(exchanges):
        usage.add(index, event.get("usage"))
        if "error" in event:
            await send_event(send, _json(event))
        elif event.get("choices"):
            await send_event(send, _json(chunk(heading, index, event)))
    if request.wants_usage:
        await send_event(send, _json(usage_chunk(heading, usage)))


async def _merged(exchanges: list[Exchange]) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """(sample, event) of all samples as they come."""
    events: asyncio.Queue[tuple[int, dict[str, Any]] | None] = asyncio.Queue()

    async def read(index: int) -> None:
        try:
            async for event in _events_of(exchanges[index]):
                events.put_nowait((index, event))
        finally:
            events.put_nowait(None)

    readers = [asyncio.create_task(read(index)) for index in range(len(exchanges))]
    num_open = len(readers)
    while num_open:
        if (item := await events.get()) is None:
            num_open -= 1
        else:
            yield item
    await asyncio.gather(*readers)


async def _events_of(exchange: Exchange) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events of SGLang's, without the last word."""
    buffered = b""
    async for part in exchange.chunks():
        buffered += part
        *lines, buffered = buffered.split(b"\n\n")
        for line in lines:
            data = line.removeprefix(b"data: ")
            if data != DONE and data.strip():
                yield json.loads(data)


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
