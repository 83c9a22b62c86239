"""The client of a remote server, for its probe and its health. Every call has a deadline, and follows no redirect."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from engines.errors import BadRequest, DeadlineExceeded, EngineDown, EngineFault, TandemError, Unavailable
from engines.remote.answers import ChatAnswer, ChatEvent, ModelList
from engines.remote_settings import root_of

CALL_TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 4 * 2**20
MAX_QUOTED_CHARS = 500
MAX_NAMES = 10

_NO_KEY = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_OF_A_PROXY = frozenset(range(520, 525))
"""Of Cloudflare's, which many servers stand behind: it got no answer from the server."""
_BUSY = _OF_A_PROXY | {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
_EVENT = "data:"
_DONE = "[DONE]"
Reply = TypeVar("Reply", bound=BaseModel)


class ServerBusy(Unavailable):
    """The server, or what stands before it, takes no requests at this moment."""


class NoPermission(EngineDown):
    """The server does not take our key, or not for what was asked."""


class RemoteClient:
    """Speaks to one server. Create and close it on one event loop; `close` is safe to call twice.

    Every call raises `EngineDown` (not reached), `NoPermission`, `ServerBusy`, `DeadlineExceeded`, `BadRequest` (it
    refuses what was asked) or `EngineFault` (it fails, or answers what it should not).
    """

    def __init__(self, title: str, url: str, api_key: str) -> None:
        self._title = f"{title}: the server at {url}"
        self._root = root_of(url)
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {}, trust_env=False
        )

    async def close(self) -> None:
        await self._session.close()

    async def check_model(self, model: str, timeout_s: float) -> None:
        """Raises `EngineDown` unless it lists `model`."""
        raw = await self._call("GET", "/v1/models", None, {}, timeout_s)
        names = self._parse(ModelList, raw, "list of models").names()
        if model not in names:
            listed = ", ".join(name[:80] for name in names[:MAX_NAMES]) or "none"
            raise EngineDown(f"{self._title} has no model '{model}'; set `model` to one that it lists: {listed}")

    async def ask(self, body: Mapping[str, Any], request_id: str) -> ChatAnswer:
        raw = await self._call("POST", "/v1/chat/completions", body, {"X-Request-Id": request_id}, CALL_TIMEOUT_S)
        return self._parse(ChatAnswer, raw, "chat completion")

    async def ask_streaming(self, body: Mapping[str, Any], request_id: str) -> tuple[ChatEvent, ...]:
        """The events of a stream, without its end mark; none if the server answers as a whole."""
        raw = await self._call("POST", "/v1/chat/completions", body, {"X-Request-Id": request_id}, CALL_TIMEOUT_S)
        lines = (line.strip() for line in raw.decode(errors="replace").splitlines())
        events = (line.removeprefix(_EVENT).strip() for line in lines if line.startswith(_EVENT))
        return tuple(self._parse(ChatEvent, event.encode(), "stream's event") for event in events if event != _DONE)

    async def _call(self, method: str, path: str, body: object, headers: Mapping[str, str], timeout_s: float) -> bytes:
        try:
            async with self._session.request(
                method,
                self._root + path,
                json=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as answer:
                raw = await self._read(answer)
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self._title} did not answer {method} {path} within {timeout_s:.0f} s") from error
        except aiohttp.ClientError as error:
            raise EngineDown(
                f"{self._title} cannot be reached, or broke off {method} {path}; see whether it runs", detail=str(error)
            ) from error
        if answer.status != HTTPStatus.OK:
            raise self._refusal(f"{method} {path}", answer.status, raw)
        return raw

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        chunks = []
        num_bytes = 0
        async for chunk in answer.content.iter_any():
            num_bytes += len(chunk)
            if num_bytes > MAX_ANSWER_BYTES:
                raise EngineFault(
                    f"{self._title} sent over {MAX_ANSWER_BYTES} bytes where a short answer was asked for"
                )
            chunks.append(chunk)
        return b"".join(chunks)

    def _refusal(self, call: str, status: int, raw: bytes) -> TandemError:
        detail = raw[:MAX_QUOTED_CHARS].decode(errors="replace")
        if status in _NO_KEY:
            return NoPermission(
                f"{self._title} does not take our API key (HTTP {status}); check the variable that api_key_env names",
                detail=detail,
            )
        if status in _BUSY:
            return ServerBusy(f"{self._title} takes no requests now (HTTP {status} to {call})", detail=detail)
        kind = BadRequest if 400 <= status < 500 else EngineFault
        return kind(f"{self._title} answered {status} to {call}", detail=detail)

    def _parse(self, kind: type[Reply], raw: bytes, what: str) -> Reply:
        try:
            return kind.model_validate_json(raw)
        except ValidationError as error:
            raise EngineFault(
                f"{self._title} answered no {what} as OpenAI's API has it; is its URL right?",
                detail=raw[:MAX_QUOTED_CHARS].decode(errors="replace"),
            ) from error
