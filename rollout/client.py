"""Asks engines directly over HTTP: one chat request, its answers with token ids and log-probabilities."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Protocol

import aiohttp

from engines.errors import BadRequest, DeadlineExceeded, EngineDown, EngineFault, TandemError, Unavailable
from rollout.chat import MAX_DETAIL_CHARS, Question, read_turns, to_body
from rollout.types import Target, Turn

CHAT_PATH = "/v1/chat/completions"
# Under the 5 s after which the engines' servers close an idle connection.
KEEP_ALIVE_S = 3.0
REFUSED = (400, 413, 415, 422)


class Client(Protocol):
    """What a sampler asks."""

    async def ask(self, target: Target, question: Question) -> tuple[Turn, ...]: ...


class EngineClient:
    """One keep-alive pool for all engines. Use it on one event loop; `close` is safe to call twice."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, target: Target, question: Question) -> tuple[Turn, ...]:
        """Up to `question.num_samples` answers. Cancelled, it closes the connection, which aborts the engine's work.

        Raises `BadRequest` (the request, by its prompt's id), `Unavailable` (the replica went away, is busy, or lacks
        the version: ask another), `OtherVersion` (it answered for another one: likewise), `EngineFault` (it failed on
        this request, or its answer cannot be used) or `DeadlineExceeded`.
        """
        body = await asyncio.to_thread(to_body, question)
        status, raw = await self._post(target, body, question)
        if status != 200:
            raise _refusal(status, raw, target, question)
        return read_turns(raw, question, target.name)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _post(self, target: Target, body: bytes, question: Question) -> tuple[int, bytes]:
        headers = {
            "Authorization": f"Bearer {target.endpoint.token}",
            "Content-Type": "application/json",
            "X-Request-Id": uuid.uuid4().hex,
        }
        try:
            async with self._open().post(target.endpoint.url + CHAT_PATH, data=body, headers=headers) as answer:
                return answer.status, await answer.read()
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"{target.name} did not answer prompt {question.prompt_id} within {self._timeout_s:g} s; raise "
                "rollout.request_timeout_s if answers may take longer"
            ) from error
        except aiohttp.ClientError as error:
            raise EngineDown(
                f"{target.name} went away before it answered prompt {question.prompt_id}", detail=repr(error)
            ) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                trust_env=False,
            )
        return self._session


def _refusal(status: int, raw: bytes, target: Target, question: Question) -> TandemError:
    said = _read_message(raw)
    if status in REFUSED:
        return BadRequest(
            f"{target.name} refuses prompt {question.prompt_id} ({status}); check its length and its images against "
            f"the engine's limits: {said}"
        )
    if status == 404:
        return Unavailable(f"{target.name} does not hold {question.version} now; ask another replica", detail=said)
    if status == 401:
        return Unavailable(f"{target.name} does not know its token: it was started again since", detail=said)
    if status == 429 or status > 500:
        return Unavailable(f"{target.name} failed on prompt {question.prompt_id} ({status})", detail=said)
    # 500 too: it lives, and failed on this request. One that is dying is not there when it is asked again.
    return EngineFault(f"{target.name} answered {status} to prompt {question.prompt_id}", detail=said)


def _read_message(raw: bytes) -> str:
    """One line of what an engine said of its error."""
    try:
        text = str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = raw.decode(errors="replace")
    return " ".join(text.split())[:MAX_DETAIL_CHARS]
