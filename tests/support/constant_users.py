"""Users at a constant rate, open loop: each streams an answer of a fixed length about a picture."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import aiohttp

from gateway.demo.load import percentile
from gateway.demo.questions import Question

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Streamed:
    """One request. `chunks_s`: when each chunk came, monotonic. `error` is empty if it was answered whole."""

    started_s: float
    status: int = 0
    chunks_s: tuple[float, ...] = ()
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.chunks_s[0] - self.started_s

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Between tokens. The first chunk, which names the role, and the first token come together."""
        return tuple(after - before for before, after in pairwise(self.chunks_s[1:]))


class ConstantUsers:
    """Asks `questions` in turn at `rate_per_s`. An async context manager; leaving it waits for the last answer."""

    def __init__(
        self, url: str, model: str, questions: Sequence[Question], *, rate_per_s: float, num_tokens: int
    ) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._bodies = [_body(model, question, num_tokens) for question in questions]
        self._interval_s = 1.0 / rate_per_s
        self._under_way: set[asyncio.Task[None]] = set()
        self._all: list[Streamed] = []

    async def __aenter__(self) -> ConstantUsers:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            headers={"Content-Type": "application/json"},
            trust_env=False,
        )
        self._clock = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._clock.cancel()
        await asyncio.gather(self._clock, *self._under_way, return_exceptions=True)
        await self._session.close()

    @property
    def answers(self) -> tuple[Streamed, ...]:
        """All that have ended, however."""
        return tuple(self._all)

    async def wait_answered(self) -> None:
        """Returns once what is under way now has ended."""
        if self._under_way:
            await asyncio.wait(set(self._under_way))

    def between(self, begin_s: float, end_s: float) -> tuple[Streamed, ...]:
        """Those that began in this time and have ended."""
        return tuple(one for one in self._all if begin_s <= one.started_s < end_s)

    async def _tick(self) -> None:
        start_s = time.monotonic()
        for turn in itertools.count():
            await asyncio.sleep(max(0.0, start_s + turn * self._interval_s - time.monotonic()))
            task = asyncio.create_task(self._ask(self._bodies[turn % len(self._bodies)]))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _ask(self, body: bytes) -> None:
        started_s = time.monotonic()
        try:
            async with self._session.post(self._url, data=body) as answer:
                self._all.append(await _read(answer, started_s))
        except (aiohttp.ClientError, TimeoutError) as error:
            self._all.append(Streamed(started_s, error=repr(error)))


def p95_ttft_ms(answers: Iterable[Streamed]) -> float:
    return 1000 * percentile([one.ttft_s for one in answers if not one.error], 0.95)


def p95_gap_ms(answers: Iterable[Streamed]) -> float:
    return 1000 * percentile([gap for one in answers if not one.error for gap in one.gaps_s], 0.95)


async def _read(answer: aiohttp.ClientResponse, started_s: float) -> Streamed:
    if answer.status != 200:
        return Streamed(started_s, answer.status, error=(await answer.text())[:300])
    chunks_s: list[float] = []
    error = "the stream ended before the answer did"
    async for line in answer.content:
        if line.startswith(b'data: {"error"'):
            return Streamed(started_s, answer.status, tuple(chunks_s), error=line.decode(errors="replace")[:300])
        if line.startswith(b"data: [DONE]"):
            error = ""
        elif line.startswith(b"data: "):
            chunks_s.append(time.monotonic())
    return Streamed(started_s, answer.status, tuple(chunks_s), error)


def _body(model: str, question: Question, num_tokens: int) -> bytes:
    length = {"max_tokens": num_tokens, "ignore_eos": True}
    body = {"model": model, "messages": question.messages, "stream": True, "temperature": 0.0}
    return json.dumps(body | length).encode()
