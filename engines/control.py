"""The client of an engine's control routes (`engines.wire`). One per engine; every call has a deadline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, ValidationError

from engines.errors import (
    AdapterRefused,
    BadRequest,
    Conflict,
    DeadlineExceeded,
    EngineDown,
    EngineFault,
    NoSlot,
    NotFound,
    TandemError,
    Unavailable,
)
from engines.types import AdapterRef, Endpoint, EngineStats, LoadedAdapter, ProbePrompt, ProbeScore, VersionName
from engines.wire import (
    AdapterList,
    AdapterReply,
    AddAdapter,
    ErrorDetail,
    ErrorReply,
    ProbeReply,
    ProbeRequest,
    PromptBody,
    StatsReply,
    SwapWeights,
)

HEALTH_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 60.0
PROBE_TIMEOUT_S = 120.0
SWAP_TIMEOUT_S = 600.0
"""Weights of many gigabytes come from a disk."""
MAX_ERROR_CHARS = 500

_log = logging.getLogger(__name__)
_BY_CODE: tuple[type[TandemError], ...] = (
    AdapterRefused, BadRequest, Conflict, DeadlineExceeded, EngineDown, EngineFault, NoSlot, NotFound,
)  # fmt: skip
_BY_STATUS: dict[int, type[TandemError]] = {400: BadRequest, 404: NotFound, 409: Conflict, 503: Unavailable}
Reply = TypeVar("Reply", bound=BaseModel)


class ControlClient:
    """Speaks to one server. Create and close it on one event loop; `close` is safe to call twice.

    Messages quote what our own routes say; whatever else the server says, and its bytes, are in an error's `detail`.
    """

    def __init__(self, name: str, endpoint: Endpoint, log_path: Path) -> None:
        self._name = name
        self._log_path = log_path
        self._session = aiohttp.ClientSession(
            base_url=endpoint.url,
            headers={"Authorization": f"Bearer {endpoint.token}"},
            trust_env=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def is_healthy(self) -> bool:
        """Whether GET /health answers 200 in time."""
        return await self.health_status() == HTTPStatus.OK

    async def health_status(self) -> int | None:
        """The HTTP status that GET /health answers; None if no answer comes in time."""
        try:
            async with self._session.get("/health", timeout=aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            return None

    async def first_answer(self, model: VersionName, timeout_s: float) -> None:
        """One token of a real chat completion; raises `EngineDown` or `EngineFault` unless it comes."""
        body = {"model": str(model), "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
        await self.call("POST", "/v1/chat/completions", body, timeout_s)

    async def load_adapter(self, adapter: AdapterRef) -> LoadedAdapter:
        body = AddAdapter(version=str(adapter.version), slot_id=adapter.slot_id, path=str(adapter.path.absolute()))
        raw = await self.call("POST", "/tandem/adapters", body.model_dump(), CALL_TIMEOUT_S)
        return self._parse(AdapterReply, raw).loaded()

    async def drop_adapter(self, version: VersionName) -> None:
        await self.call("DELETE", f"/tandem/adapters/{quote(str(version), safe='@')}", None, CALL_TIMEOUT_S)

    async def list_adapters(self) -> tuple[LoadedAdapter, ...]:
        raw = await self.call("GET", "/tandem/adapters", None, CALL_TIMEOUT_S)
        return tuple(reply.loaded() for reply in self._parse(AdapterList, raw).adapters)

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        body = ProbeRequest(version=str(version), prompts=[PromptBody.of(prompt) for prompt in prompts])
        raw = await self.call("POST", "/tandem/probe", body.model_dump(), PROBE_TIMEOUT_S)
        scores = tuple(body.score() for body in self._parse(ProbeReply, raw).scores)
        self._check_lengths(scores, prompts)
        return scores

    async def pause(self) -> None:
        await self.call("POST", "/tandem/pause", {}, CALL_TIMEOUT_S)

    async def swap_weights(self, model: Path, base: VersionName) -> None:
        body = SwapWeights(path=str(model), base=str(base))
        await self.call("POST", "/tandem/weights", body.model_dump(), SWAP_TIMEOUT_S)

    async def resume(self) -> None:
        await self.call("POST", "/tandem/resume", {}, CALL_TIMEOUT_S)

    async def stats(self) -> EngineStats:
        raw = await self.call("GET", "/tandem/stats", None, HEALTH_TIMEOUT_S)
        return self._parse(StatsReply, raw).stats()

    async def call(self, method: str, path: str, body: object, timeout_s: float) -> bytes:
        """One call: the body of a 200; raises the `TandemError` that any other answer means."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, path, json=body, timeout=timeout) as answer:
                raw = await answer.read()
                if answer.status != 200:
                    raise self._error(f"{method} {path}", answer.status, raw)
                return raw
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self._name} did not answer {method} {path} within {timeout_s:.0f} s") from error
        except aiohttp.ClientError as error:
            raise EngineDown(
                f"{self._name} cannot be reached for {method} {path}; {self._log_path} says why", detail=str(error)
            ) from error

    def _error(self, call: str, status: int, raw: bytes) -> TandemError:
        try:
            said = ErrorReply.model_validate_json(raw).error
        except ValidationError:
            said = ErrorDetail()
        ours = next((kind for kind in _BY_CODE if kind.code == said.code), None)
        if ours is not None:
            error = ours(f"{self._name}: {said.message[:MAX_ERROR_CHARS]}", detail=said.detail[:MAX_ERROR_CHARS])
        else:
            error = _BY_STATUS.get(status, EngineFault)(
                f"{self._name} answered {status} to {call}; {self._log_path} says why",
                detail=raw[:MAX_ERROR_CHARS].decode(errors="replace"),
            )
        _log.warning("%s: %s", error.message, error.detail or "(no more was said)")
        return error

    def _parse(self, kind: type[Reply], raw: bytes) -> Reply:
        try:
            return kind.model_validate_json(raw)
        except ValidationError as error:
            raise EngineFault(
                f"{self._name} answered no {kind.__name__}: {error.error_count()} fields are wrong",
                detail=raw[:MAX_ERROR_CHARS].decode(errors="replace"),
            ) from error

    def _check_lengths(self, scores: Sequence[ProbeScore], prompts: Sequence[ProbePrompt]) -> None:
        counts = [len(score.logprobs) for score in scores]
        wanted = [prompt.num_tokens for prompt in prompts]
        if counts != wanted:
            raise EngineFault(f"{self._name} scored {counts} tokens where the probe asked for {wanted}")
