"""Calls of the wrapped application, in this process: SGLang's own HTTP, without a socket.

An exchange is never cut off from outside. SGLang takes a client's disconnect for an abort, and then never counts the
request as done with its adapter, so the application always sees a client that stays to the end.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from .asgi import App, Message, Scope
from .refusal import Refusal, too_late

CALL_TIMEOUT_S = 10.0
_log = logging.getLogger("tandem_sglang_plugin")
_running: set[asyncio.Task[None]] = set()


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; empty if it is none."""
        try:
            document = json.loads(self.body)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}

    def reason(self) -> str:
        """What an answer other than 200 says, in whichever of SGLang's shapes it says it."""
        said = self.json()
        inner = said.get("error", said)
        text = inner.get("message") if isinstance(inner, dict) else inner
        return str(text or said.get("error_message") or self.body[:400].decode(errors="replace"))


def nothing() -> None:
    """For who need not know of an exchange's end."""


class Exchange:
    """One request to the application, under way. It is read to its end whether anybody asks for the answer or not;
    `ended` is called then, once."""

    def __init__(self, app: App, scope: Scope, body: bytes, ended: Callable[[], None] = nothing) -> None:
        self._body: bytes | None = body
        self._ended = ended
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        task = asyncio.create_task(self._run(app, scope))
        _running.add(task)  # SGLang's background work goes on after the answer's end
        task.add_done_callback(_running.discard)

    async def status(self) -> int:
        """The answer's status, once it begins: 500 if the application ended without one."""
        message = await self._messages.get()
        if message is None:
            self._messages.put_nowait(None)
            return 500
        status: int = message["status"]
        return status

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's parts, to the end. After `status`."""
        while (message := await self._messages.get()) is not None:
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return

    async def rest(self) -> bytes:
        """The whole body. After `status`."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def whole(self) -> Answer:
        return Answer(await self.status(), await self.rest())

    async def _run(self, app: App, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception:  # named boundary: a defect of the application is that request's 500
            _log.exception("SGLang failed at %s %s", scope["method"], scope["path"])
        finally:
            self._messages.put_nowait(None)
            self._end()

    def _end(self) -> None:
        ended, self._ended = self._ended, nothing
        ended()

    async def _receive(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()  # we never hang up
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def _send(self, message: Message) -> None:
        self._messages.put_nowait(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._end()


class Inner:
    """The application as a client sees it. `outer` is the scope of the request that is served by it."""

    def __init__(self, app: App) -> None:
        self._app = app

    def begin(
        self, outer: Scope, method: str, path: str, body: Any = None, ended: Callable[[], None] = nothing
    ) -> Exchange:
        raw = b"" if body is None else json.dumps(body).encode()
        path, _, query = path.partition("?")
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {
            **outer,
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [*headers, (b"content-length", str(len(raw)).encode())],
        }
        return Exchange(self._app, scope, raw, ended)

    async def call(
        self, outer: Scope, method: str, path: str, body: Any = None, timeout_s: float | None = None
    ) -> Answer:
        """Raises `TimeoutError`, by default after `CALL_TIMEOUT_S`; the request goes on then, unheard."""
        exchange = self.begin(outer, method, path, body)
        return await asyncio.wait_for(exchange.whole(), CALL_TIMEOUT_S if timeout_s is None else timeout_s)

    async def read(self, outer: Scope, path: str) -> dict[str, Any]:
        """The JSON object that a GET is answered with. Raises `Refusal` if none comes in time, or another status."""
        try:
            answer = await self.call(outer, "GET", path)
        except TimeoutError as error:
            raise too_late(f"the engine did not answer GET {path} within {CALL_TIMEOUT_S:g} s") from error
        if answer.status != 200:
            raise Refusal(502, "engine_fault", f"the engine failed at GET {path}; its log says why", answer.reason())
        return answer.json()
