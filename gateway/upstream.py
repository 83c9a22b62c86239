"""One completion asked of an engine: the request, its answer's bytes, and the time spent on waiting for them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from types import SimpleNamespace

import aiohttp

from engines.errors import BadMediaType, BadRequest, EngineDown, EngineFault, TandemError, TooLarge, Unavailable
from engines.types import Endpoint
from gateway.call import Stopwatch
from gateway.config import GatewayConfig

_log = logging.getLogger(__name__)
_PATH = "/v1/chat/completions"
# Under the 5 s after which the engines' servers close an idle connection.
_KEEP_ALIVE_S = 3.0
_MAX_ERROR_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 64 * 2**20
"""Of an answer that is held as a whole: a remote server's may be of any size."""
_CONTEXT = re.compile(r"maximum (?:context|model) length (?:is|of) (\d+)", re.IGNORECASE)
_KEPT: dict[int, type[TandemError]] = {400: BadRequest, 413: TooLarge, 415: BadMediaType, 422: BadRequest}
_EVENT = b"data: "
_ERROR_EVENT = _EVENT + b'{"error"'


class Failure(StrEnum):
    """How a replica failed on a request that another one may answer."""

    UNREACHABLE = "unreachable"
    WENT_AWAY = "went_away"
    ENGINE_ERROR = "engine_error"
    NOT_HELD = "not_held"
    SILENT = "silent"


class EngineFailed(Exception):
    """The replica, not the request, is at fault; `error` is what the client gets if nobody else answers."""

    def __init__(self, kind: Failure, error: TandemError) -> None:
        super().__init__(error.message)
        self.kind = kind
        self.error = error


class Answer:
    """An engine's 2xx answer; `waiting` runs while its reader waits for bytes. Close it."""

    def __init__(self, response: aiohttp.ClientResponse, waiting: Stopwatch) -> None:
        self._response = response
        self._waiting = waiting
        self._failed: TandemError | EngineFailed | None = None
        self.content_type = response.headers.get("content-type", "application/json")

    async def read_chunk(self) -> bytes:
        """What has arrived of a stream, at least one byte; empty at the end.

        Raises `EngineFailed`, or what the engine refused by an event.
        """
        if self._failed is not None:
            raise self._failed
        with self._waiting, _broken_off():
            chunk = await self._response.content.readany()
        # A string in JSON has its quotes escaped: only an event that is an error reads so.
        start = chunk.find(_ERROR_EVENT)
        if start < 0:
            return chunk
        self._failed = _read_event(chunk[start + len(_EVENT) :])
        if start == 0:
            raise self._failed
        return chunk[:start]

    async def read_all(self) -> bytes:
        """The whole body. Raises `EngineFailed`, also beyond `MAX_ANSWER_BYTES`."""
        body = bytearray()
        with self._waiting, _broken_off():
            async for chunk in self._response.content.iter_any():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise _too_long()
        return bytes(body)

    def close(self) -> None:
        """Gives the connection back if all was read; closes it, and so aborts the engine's work, otherwise."""
        _release(self._response)


class Upstream:
    """One keep-alive pool for all engines. Use it on one event loop."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, endpoint: Endpoint, body: bytes, request_id: str, waiting: Stopwatch) -> Answer:
        """Raises what the engine refused (in our words), or `EngineFailed`."""
        with waiting:
            response = await self._post(endpoint, body, request_id)
        if response.status < 300:
            return Answer(response, waiting)
        try:
            with waiting, _broken_off():
                content = await response.content.read(_MAX_ERROR_BYTES)
        finally:
            _release(response)
        raise _refusal(response.status, content)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            # The transports close in the loop's next turn.
            await asyncio.sleep(0)

    async def _post(self, endpoint: Endpoint, body: bytes, request_id: str) -> aiohttp.ClientResponse:
        headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "X-Request-Id": request_id,
        }
        if endpoint.token:
            headers["Authorization"] = f"Bearer {endpoint.token}"
        # A redirect would carry the request to where nobody configured it to go.
        asking = partial(self._open().post, endpoint.url + _PATH, data=body, headers=headers, allow_redirects=False)
        connection = _Connection()
        try:
            try:
                return await asking(trace_request_ctx=connection)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # A kept connection that the server closed while idle: it never read the request. If it did and died,
                # nothing listens there; if it lives, closing the connection ended its work. So no work is doubled. A
                # new connection has no such excuse.
                if not connection.is_reused:
                    raise
            return await asking()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            _log.warning("an engine cannot be reached: %r", error)
            unavailable = Unavailable("The engine cannot be reached; retry in a moment.")
            raise EngineFailed(Failure.UNREACHABLE, unavailable) from error
        except aiohttp.ClientError as error:
            _log.warning("an engine did not answer: %r", error)
            down = EngineDown("The engine went away before it answered; retry in a moment.")
            raise EngineFailed(Failure.WENT_AWAY, down) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            tracing = aiohttp.TraceConfig()
            tracing.on_connection_reuseconn.append(_note_reuse)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._config.connect_timeout_s),
                auto_decompress=False,
                trust_env=False,
                trace_configs=[tracing],
            )
        return self._session


@dataclass(slots=True)
class _Connection:
    """What was learned of the connection that a request went over."""

    is_reused: bool = False


async def _note_reuse(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
    if isinstance(context.trace_request_ctx, _Connection):
        context.trace_request_ctx.is_reused = True


@contextmanager
def _broken_off() -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientError as error:
        _log.warning("an engine broke off its answer: %r", error)
        down = EngineDown("The engine broke off in the middle of its answer; ask again.")
        raise EngineFailed(Failure.WENT_AWAY, down) from error


def _release(response: aiohttp.ClientResponse) -> None:
    response.release() if response.content.at_eof() else response.close()


def _fault() -> EngineFailed:
    fault = EngineFault("The engine failed on this request. It is logged; retry, and report it if it stays.")
    return EngineFailed(Failure.ENGINE_ERROR, fault)


def _too_long() -> EngineFailed:
    _log.warning("an engine sent an answer of more than %d bytes", MAX_ANSWER_BYTES)
    fault = EngineFault(f"The engine's answer has more than {MAX_ANSWER_BYTES} bytes; ask for a shorter one.")
    return EngineFailed(Failure.ENGINE_ERROR, fault)


def _refusal(status: int, content: bytes) -> TandemError | EngineFailed:
    message, param = _read_error(content)
    _log.info("an engine answered %d: %s", status, message)
    if status == 404:
        lacking = Unavailable("The engine does not hold this version now; retry in a moment.", param="model")
        return EngineFailed(Failure.NOT_HELD, lacking)
    if status in (429, 503):
        busy = Unavailable("The engine takes no requests now; retry in a moment.")
        return EngineFailed(Failure.ENGINE_ERROR, busy)
    kind = _KEPT.get(status)
    if kind is None:
        return _fault()
    context = _CONTEXT.search(message)
    if context is not None:
        return kind(
            f"Prompt and answer exceed the model's context of {context[1]} tokens; shorten one.", param="messages"
        )
    return kind(
        "The engine refused the request; check the fields' values, and the prompt's and images' size.", param=param
    )


def _read_event(event: bytes) -> TandemError | EngineFailed:
    """An error that comes as a stream's event carries its status as `code`."""
    content = event.partition(b"\n\n")[0]
    try:
        code = json.loads(content)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        code = None
    return _refusal(code if isinstance(code, int) and 400 <= code < 600 else 500, content)


def _read_error(body: bytes) -> tuple[str, str | None]:
    try:
        error = json.loads(body)["error"]
        param = error.get("param")
        return str(error["message"]), param if isinstance(param, str) and param.isidentifier() else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:500].decode("utf-8", "replace"), None
