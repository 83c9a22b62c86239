"""The hot path: `POST /v1/chat/completions` as a bare ASGI application.

The request is parsed once; the answer's bytes pass untouched, each as soon as it is there. From before the engine is
asked until the end a task listens for the client's hang-up, which aborts the engine's work, streaming or not. Nothing
is sent before an engine's first bytes, so that another replica can be asked; after them an error ends the stream as
its last event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

from starlette.types import Receive, Scope, Send

from engines.errors import DeadlineExceeded, Internal, TandemError, Unavailable
from gateway.asking import Asker, Question, Reply
from gateway.body import ClientGone, read_body
from gateway.call import Call
from gateway.capable import check_needs
from gateway.errors import DEFECT_MESSAGE, log_error, send_error, send_method_not_allowed, sse_event
from gateway.record import Exchange
from gateway.route import Hold, Target
from gateway.schemas import ChatRequest, parse_chat
from gateway.services import Services
from gateway.transcript import is_key, read_transcript
from gateway.upstream import EngineFailed

_log = logging.getLogger(__name__)
_CLIENT_GONE = 499
# Parsing more than this would hold up the loop.
_PARSE_INLINE_BYTES = 64 * 1024


class Relay:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._config = services.config.gateway
        self._asker = Asker(services)

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
        await self._asker.close()

    async def _answer(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._config)
        if len(body) > _PARSE_INLINE_BYTES:
            request = await asyncio.to_thread(parse_chat, body, self._config)
        else:
            request = parse_chat(body, self._config)
        call.stream = request.stream
        await self._services.routes.wait_open(request.model, self._config.first_token_timeout_s)
        target = self._services.routes.resolve(request.model)
        call.model, call.version = target.alias, str(target.version)
        check_needs(request, target)
        with self._services.routes.hold(target) as hold:
            await _until_hang_up(call, self._relay(call, request, hold, send), receive)

    async def _relay(self, call: Call, request: ChatRequest, hold: Hold, send: Send) -> None:
        body = request.for_engine(hold.target.replica.endpoint.model_of(hold.target.version))
        question = Question(call.id, body, request.stream, call.waiting)
        recorder = self._services.recorder
        if request.store:
            recorder.begin(call.completion_id)
        try:
            async with (
                asyncio.timeout(self._config.request_timeout_s),
                self._asker.open(question, hold) as reply,
            ):
                await self._send(call, reply, send)
            reply.succeed()
            if call.stream:
                self._services.board.note_ttft(reply.target.replica.name, reply.ttft_s)
        except TimeoutError:
            call.status = DeadlineExceeded.status
            raise DeadlineExceeded("The engine did not answer in time; ask for fewer tokens, or retry.") from None
        except asyncio.CancelledError:
            call.status = _CLIENT_GONE
            raise
        except EngineFailed as failed:
            call.status = failed.error.status
            raise failed.error from failed
        except TandemError as error:
            call.status = error.status
            raise
        finally:
            if request.store:
                self._record(call, request, hold.target)

    async def _send(self, call: Call, reply: Reply, send: Send) -> None:
        call.ttft_s = call.elapsed_s()
        name, users = reply.target.replica.name, self._services.users
        users.note_answer(name, reply.ttft_s if call.stream else None)
        if reply.target.replica.endpoint.is_remote:
            self._keep_id(call, reply)
        await self._start(call, reply, send)
        chunk = reply.first
        while call.stream and chunk:
            call.chunks.append(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            waited_s = call.waiting.seconds
            chunk = await reply.read_more()
            if chunk:
                users.note_gap(name, call.waiting.seconds - waited_s)
        if not call.stream:
            call.chunks.append(chunk)
        call.complete = True
        await send({"type": "http.response.body", "body": chunk})

    def _keep_id(self, call: Call, reply: Reply) -> None:
        """A remote server's own id is what feedback will name, where it can be told from all others."""
        given_id = read_transcript(reply.first, stream=call.stream).id or ""
        if is_key(given_id) and self._services.recorder.rename(call.completion_id, given_id):
            call.given_id = given_id

    async def _start(self, call: Call, reply: Reply, send: Send) -> None:
        headers = [
            (b"content-type", reply.content_type.encode("latin-1")),
            (b"x-request-id", call.id.encode()),
            (b"x-tandem-version", call.version.encode()),
            (b"x-tandem-replica", reply.target.replica.name.encode()),
        ]
        if reply.target.replica.endpoint.is_remote:
            headers += [(b"x-tandem-completion", call.completion_id.encode())]
        if call.stream:
            headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        else:
            headers += [(b"content-length", str(len(reply.first)).encode())]
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

    def _record(self, call: Call, request: ChatRequest, target: Target) -> None:
        if not call.chunks:
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
        metrics.overhead_seconds.observe(max(0.0, total_s - call.waiting.seconds))
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
