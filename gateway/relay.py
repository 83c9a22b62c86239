"""The hot path: `POST /v1/chat/completions` as a bare ASGI application.

The request is parsed once; the answer's bytes pass untouched, each as soon as it is there. From before the engine is
asked until the end a task listens for the client's hang-up, which aborts the engine's work, streaming or not. After
the first byte nothing is retried: an error ends the stream as its last event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime

import uuid_utils
from starlette.types import Receive, Scope, Send

from engines.errors import DeadlineExceeded, Internal, TandemError, Unavailable
from gateway.body import ClientGone, read_body
from gateway.errors import DEFECT_MESSAGE, log_error, send_error, send_method_not_allowed, sse_event
from gateway.record import Exchange
from gateway.route import Target
from gateway.schemas import ChatRequest, parse_chat
from gateway.services import Services
from gateway.upstream import Answer, Upstream

_log = logging.getLogger(__name__)
_CLIENT_GONE = 499
# Parsing more than this would hold up the loop.
_PARSE_INLINE_BYTES = 64 * 1024
_UNROUTED = "none"


@dataclass(slots=True)
class Call:
    """What is known of one call so far."""

    id: str = field(default_factory=lambda: str(uuid_utils.uuid7()))
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    start_s: float = field(default_factory=time.perf_counter)
    model: str = _UNROUTED
    version: str = _UNROUTED
    status: int = 0
    started: bool = False
    complete: bool = False
    stream: bool = False
    ttft_s: float = 0.0
    waited_s: float = 0.0
    chunks: list[bytes] = field(default_factory=list)

    @property
    def completion_id(self) -> str:
        return f"chatcmpl-{self.id}"

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.start_s


class Relay:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._config = services.config.gateway
        self._upstream = Upstream(self._config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await send_method_not_allowed(send, "POST")
            return
        call = Call()
        services = self._services
        if services.drain.is_draining:
            await self._refuse_draining(call, send)
            return
        with services.drain.in_flight(), services.metrics.in_flight.track_inprogress():
            try:
                await self._answer(call, scope, receive, send)
            except ClientGone:
                call.status = _CLIENT_GONE
            except TandemError as error:
                await self._fail(call, send, error)
            except Exception:
                _log.exception("completion %s: unhandled error", call.completion_id)
                await self._fail(call, send, Internal(DEFECT_MESSAGE))
            finally:
                self._count(call)

    async def close(self) -> None:
        await self._upstream.close()

    async def _answer(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._config)
        if len(body) > _PARSE_INLINE_BYTES:
            request = await asyncio.to_thread(parse_chat, body, self._config)
        else:
            request = parse_chat(body, self._config)
        call.stream = request.stream
        target = self._services.routes.resolve(request.model)
        call.model, call.version = target.alias, str(target.version)
        with self._services.routes.hold(target):
            await _until_hang_up(call, self._relay(call, request, target, send), receive)

    async def _relay(self, call: Call, request: ChatRequest, target: Target, send: Send) -> None:
        body = request.for_engine(str(target.version))
        recorder = self._services.recorder
        if request.store:
            recorder.begin(call.completion_id)
        deadline_s = asyncio.get_running_loop().time() + self._config.request_timeout_s
        answered = False
        try:
            async with (
                asyncio.timeout_at(deadline_s) as deadline,
                self._upstream.ask(target.replica.endpoint, body, call.id) as answer,
            ):
                answered = True
                try:
                    send_answer = self._send_stream if request.stream else self._send_whole
                    await send_answer(call, target, answer, send, deadline)
                finally:
                    call.waited_s = answer.waited_s
        except TimeoutError:
            call.status = DeadlineExceeded.status
            raise DeadlineExceeded("The engine did not answer in time; ask for fewer tokens, or retry.") from None
        except asyncio.CancelledError:
            call.status = _CLIENT_GONE
            raise
        except TandemError as error:
            call.status = error.status
            raise
        finally:
            if request.store:
                self._record(call, request, target, answered)

    async def _send_stream(
        self, call: Call, target: Target, answer: Answer, send: Send, deadline: asyncio.Timeout
    ) -> None:
        loop = asyncio.get_running_loop()
        end_s = deadline.when() or loop.time()
        await self._start(call, target, answer, send)
        while True:
            deadline.reschedule(min(end_s, loop.time() + self._config.gap_timeout_s))
            chunk = await answer.read_chunk()
            if not chunk:
                break
            if not call.chunks:
                call.ttft_s = call.elapsed_s()
            call.chunks.append(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        call.complete = True
        await send({"type": "http.response.body", "body": b""})

    async def _send_whole(
        self, call: Call, target: Target, answer: Answer, send: Send, _deadline: asyncio.Timeout
    ) -> None:
        while chunk := await answer.read_chunk():
            call.chunks.append(chunk)
        call.ttft_s = call.elapsed_s()
        body = b"".join(call.chunks)
        await self._start(call, target, answer, send, ((b"content-length", str(len(body)).encode()),))
        call.complete = True
        await send({"type": "http.response.body", "body": body})

    async def _start(
        self, call: Call, target: Target, answer: Answer, send: Send, more: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        headers = [
            (b"content-type", answer.content_type.encode("latin-1")),
            (b"x-request-id", call.id.encode()),
            (b"x-tandem-version", str(target.version).encode()),
            (b"x-tandem-replica", target.replica.name.encode()),
            *more,
        ]
        if call.stream:
            headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        call.status = 200
        call.started = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _fail(self, call: Call, send: Send, error: TandemError) -> None:
        call.status = error.status
        log_error(error)
        if not call.started:
            await send_error(send, error, {"x-request-id": call.id})
            return
        if call.stream:
            await send({"type": "http.response.body", "body": sse_event(error), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _refuse_draining(self, call: Call, send: Send) -> None:
        call.status = Unavailable.status
        error = Unavailable("This gateway is shutting down; retry, another one may answer.")
        await send_error(send, error, {"connection": "close", "x-request-id": call.id})
        self._count(call)

    def _record(self, call: Call, request: ChatRequest, target: Target, answered: bool) -> None:
        if not answered or not call.chunks:
            self._services.recorder.discard(call.completion_id)
            return
        self._services.recorder.finish(
            Exchange(
                id=call.completion_id,
                created=call.created,
                target=target,
                request=request.recorded,
                images=request.images,
                stream=request.stream,
                body=b"".join(call.chunks),
                ttft_s=call.ttft_s,
                latency_s=call.elapsed_s(),
                status=call.status,
            )
        )

    def _count(self, call: Call) -> None:
        metrics = self._services.metrics
        metrics.count_request(call.model, call.version, call.status)
        if call.status != 200:
            return
        total_s = call.elapsed_s()
        metrics.overhead_seconds.observe(max(0.0, total_s - call.waited_s))
        if call.stream:
            metrics.ttft_seconds.observe(call.ttft_s)
        if call.stream and len(call.chunks) > 1:
            metrics.itl_seconds.observe((total_s - call.ttft_s) / (len(call.chunks) - 1))


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _until_hang_up(call: Call, work: Coroutine[None, None, None], receive: Receive) -> None:
    """Runs `work`; a hang-up cancels it and raises `ClientGone`."""
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        # A server says "disconnect" after a complete answer too.
        if not working.done() and not call.complete:
            raise ClientGone
        await working
    finally:
        working.cancel()
        listening.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)
