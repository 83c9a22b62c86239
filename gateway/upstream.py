"""One completion asked of an engine: the request, its answer's bytes, and the time spent on waiting for them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from engines.errors import (
    BadMediaType,
    BadRequest,
    EngineDown,
    EngineFault,
    NotFound,
    TandemError,
    TooLarge,
    Unavailable,
)
from engines.types import Endpoint
from gateway.config import GatewayConfig

_log = logging.getLogger(__name__)
_PATH = "/v1/chat/completions"
# Under the 5 s after which the engines' servers close an idle connection.
_KEEP_ALIVE_S = 3.0
_MAX_ERROR_BYTES = 64 * 1024
_CONTEXT = re.compile(r"maximum (?:context|model) length (?:is|of) (\d+)", re.IGNORECASE)
_KEPT: dict[int, type[TandemError]] = {400: BadRequest, 413: TooLarge, 415: BadMediaType, 422: BadRequest}


class Answer:
    """An engine's 2xx answer. `waited_s` grows with the time that its reader waits for bytes."""

    def __init__(self, response: aiohttp.ClientResponse, waited_s: float) -> None:
        self._response = response
        self.waited_s = waited_s
        self.content_type = response.headers.get("content-type", "application/json")

    async def read_chunk(self) -> bytes:
        """What has arrived, at least one byte; empty at the end. Raises `EngineDown` if the engine broke off."""
        start_s = time.perf_counter()
        try:
            return await self._response.content.readany()
        except aiohttp.ClientError as error:
            _log.warning("an engine broke off its answer: %r", error)
            raise EngineDown("The engine broke off in the middle of its answer; ask again.") from error
        finally:
            self.waited_s += time.perf_counter() - start_s


class Upstream:
    """One keep-alive pool for all engines. Use it on one event loop."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def ask(self, endpoint: Endpoint, body: bytes, request_id: str) -> AsyncIterator[Answer]:
        """Leaving the block before the answer's end closes the connection, and so aborts the engine's work.

        Raises `Unavailable` (no connection), what the engine refused (in our words), or `EngineFault`.
        """
        start_s = time.perf_counter()
        response = await self._post(endpoint, body, request_id)
        try:
            if response.status >= 300:
                raise await _refusal(response)
            yield Answer(response, time.perf_counter() - start_s)
        finally:
            # Gives the connection back if all was read; closes it otherwise.
            response.release() if response.content.at_eof() else response.close()

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            # The transports close in the loop's next turn.
            await asyncio.sleep(0)

    async def _post(self, endpoint: Endpoint, body: bytes, request_id: str) -> aiohttp.ClientResponse:
        headers = {
            "Authorization": f"Bearer {endpoint.token}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "X-Request-Id": request_id,
        }
        try:
            try:
                return await self._open().post(endpoint.url + _PATH, data=body, headers=headers)
            except aiohttp.ServerDisconnectedError:
                # An idle connection that the server had closed meanwhile: nothing was answered, so ask once more.
                return await self._open().post(endpoint.url + _PATH, data=body, headers=headers)
        except aiohttp.ClientConnectorError as error:
            _log.warning("an engine cannot be reached: %r", error)
            raise Unavailable("The engine cannot be reached; retry in a moment.") from error
        except aiohttp.ClientError as error:
            _log.warning("an engine did not answer: %r", error)
            raise EngineDown("The engine went away before it answered; retry in a moment.") from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._config.connect_timeout_s),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


async def _refusal(response: aiohttp.ClientResponse) -> TandemError:
    message, param = _read_error(await response.content.read(_MAX_ERROR_BYTES))
    _log.info("an engine answered %d: %s", response.status, message)
    if response.status == 404:
        return NotFound("The engine does not hold this version any more; ask for the alias.", param="model")
    if response.status == 503:
        return Unavailable("The engine takes no requests now; retry in a moment.")
    kind = _KEPT.get(response.status)
    if kind is None:
        return EngineFault("The engine failed on this request. It is logged; retry, and report it if it stays.")
    context = _CONTEXT.search(message)
    if context is not None:
        return kind(
            f"Prompt and answer exceed the model's context of {context[1]} tokens; shorten one.", param="messages"
        )
    return kind(
        "The engine refused the request; check the fields' values, and the prompt's and images' size.", param=param
    )


def _read_error(body: bytes) -> tuple[str, str | None]:
    try:
        error = json.loads(body)["error"]
        param = error.get("param")
        return str(error["message"]), param if isinstance(param, str) and param.isidentifier() else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:500].decode("utf-8", "replace"), None
