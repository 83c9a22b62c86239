"""Streams that are always open: each client asks again as soon as its answer has ended."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import aiohttp

from gateway.demo.questions import Question

TIMEOUT_S = 120.0
VERSION_HEADER = "x-tandem-version"
_HEAD, _END = b"data: ", b"\n\n"


@dataclass(frozen=True, slots=True)
class Stream:
    """One answer. `events_s`: when each token's event came, monotonic. `version` is the header's, `named` the body's.

    `error` is empty if it was answered whole.
    """

    question: int
    started_s: float
    version: str = ""
    named: str = ""
    text: str = ""
    events_s: tuple[float, ...] = ()
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.events_s[0] - self.started_s

    @property
    def gaps(self) -> tuple[tuple[float, float], ...]:
        """(when it ended, how long it was), in seconds, between tokens."""
        return tuple((after, after - before) for before, after in pairwise(self.events_s))


class Asker:
    """Asks one model. An async context manager; belongs to one event loop."""

    def __init__(self, url: str, questions: Sequence[Question]) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._questions = questions

    async def __aenter__(self) -> Asker:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            headers={"Content-Type": "application/json"},
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, model: str, question: int, num_tokens: int) -> Stream:
        """The greedy answer of so many tokens; whatever goes wrong is its `error`."""
        body = _body(model, self._questions[question], num_tokens)
        started_s = time.monotonic()
        try:
            async with self._session.post(self._url, data=body) as answer:
                if answer.status != 200:
                    return Stream(question, started_s, error=(await answer.text())[:300])
                return await _read(answer, question, started_s)
        except (aiohttp.ClientError, TimeoutError) as error:
            return Stream(question, started_s, error=repr(error))

    async def ask_all(self, model: str, num_tokens: int) -> tuple[Stream, ...]:
        """Every question at once, in their order."""
        asked = (self.ask(model, number, num_tokens) for number in range(len(self._questions)))
        return tuple(await asyncio.gather(*asked))


class OpenStreams:
    """`num_clients` of `num_tokens` an answer, and `num_scouts` who want the first token only, so that a new version is
    met as soon as it is named. An async context manager; leaving it waits for the last answers."""

    def __init__(
        self, asker: Asker, model: str, num_questions: int, *, num_clients: int, num_scouts: int, num_tokens: int
    ) -> None:
        self._asker = asker
        self._model = model
        self._num_questions = num_questions
        self._lengths = (*[num_tokens] * num_clients, *[1] * num_scouts)
        self._turns = itertools.count()
        self._is_stopping = False
        self.answers: list[Stream] = []
        """All that have ended, however."""

    async def __aenter__(self) -> OpenStreams:
        self._clients = [asyncio.create_task(self._ask_on(length)) for length in self._lengths]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_stopping = True
        await asyncio.gather(*self._clients)

    async def _ask_on(self, num_tokens: int) -> None:
        while not self._is_stopping:
            question = next(self._turns) % self._num_questions
            answer = await self._asker.ask(self._model, question, num_tokens)
            self.answers.append(answer)
            if answer.error:
                await asyncio.sleep(0.1)  # nobody asks without a pause where nothing is answered


async def _read(answer: aiohttp.ClientResponse, question: int, started_s: float) -> Stream:
    events: list[bytes] = []
    events_s: list[float] = []
    rest = b""
    async for part in answer.content.iter_any():
        now_s = time.monotonic()
        *whole, rest = (rest + part).split(_END)
        events += whole
        events_s += [now_s] * len(whole)
    version = answer.headers.get(VERSION_HEADER, "")
    if not events or events[-1] != b"data: [DONE]":
        return Stream(question, started_s, version, events_s=tuple(events_s), error=_said(events))
    said = [json.loads(event.removeprefix(_HEAD)) for event in events[:-1]]
    named = "|".join(sorted({one["model"] for one in said}))
    # The first event names the role, and comes with the first token; the last one is no token either.
    return Stream(question, started_s, version, named, "".join(map(_text, said)), tuple(events_s[1:-1]))


def _said(events: Iterable[bytes]) -> str:
    return f"the stream ended before the answer did: {b''.join(events)[-300:].decode(errors='replace')}"


def _text(event: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))


def _body(model: str, question: Question, num_tokens: int) -> bytes:
    length = {"max_tokens": num_tokens, "ignore_eos": True}
    body = {"model": model, "messages": question.messages, "stream": True, "temperature": 0.0}
    return json.dumps(body | length).encode()
