"""The background load: users who keep asking while everything else happens.

A few requests a second, open loop, every other one streamed, for as long as the demo runs; while a version is swapped,
a few impatient users ask without a pause on top, so that requests are under way at the flip itself. Every reply is
kept, and judged at the end, when each version's own answers are known.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from gateway.demo.client import MAX_TOKENS
from gateway.demo.questions import Question

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream
    from openai.types.chat import ChatCompletionChunk

_VERSION_HEADER = "x-tandem-version"
_REPLICA_HEADER = "x-tandem-replica"


@dataclass(frozen=True, slots=True)
class Reply:
    """One background request. `error` is empty if it was answered whole; `ttft_s` is there if it was streamed."""

    question: int
    started_s: float
    ended_s: float
    version: str = ""
    header_version: str = ""
    replica: str = ""
    text: str = ""
    ttft_s: float | None = None
    error: str = ""


class BackgroundLoad:
    """Asks `questions` in turn at `rate_per_s`. An async context manager; leaving it waits for the last reply."""

    def __init__(self, client: AsyncOpenAI, model: str, questions: Sequence[Question], rate_per_s: float) -> None:
        self._client = client
        self._model = model
        self._questions = tuple(questions)
        self._interval_s = 1.0 / rate_per_s
        self._turns = itertools.count()
        self._stopping = asyncio.Event()
        self._clock: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self.replies: list[Reply] = []

    async def __aenter__(self) -> BackgroundLoad:
        self._clock = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        if self._clock is not None:
            await self._clock
        await asyncio.gather(*self._under_way)

    @asynccontextmanager
    async def impatient(self, num_users: int) -> AsyncIterator[None]:
        """Within it `num_users` more ask without a pause, so that there is always a request under way."""
        done = asyncio.Event()
        users = [asyncio.create_task(self._ask_until(done)) for _ in range(num_users)]
        try:
            yield
        finally:
            done.set()
            await asyncio.gather(*users)

    async def _tick(self) -> None:
        start_s = time.monotonic()
        for turn in itertools.count(1):
            task = asyncio.create_task(self._ask_next())
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            try:
                await asyncio.wait_for(
                    self._stopping.wait(), max(0.0, start_s + turn * self._interval_s - time.monotonic())
                )
            except TimeoutError:
                continue
            return

    async def _ask_until(self, done: asyncio.Event) -> None:
        while not done.is_set():
            await self._ask_next()

    async def _ask_next(self) -> None:
        turn = next(self._turns)
        question = turn // 2 % len(self._questions)
        started_s = time.monotonic()
        try:
            # In pairs: each question is asked in both ways.
            reply = await (self._whole if turn % 2 else self._streamed)(question, started_s)
        except Exception as error:  # whatever it is, a user was not answered
            reply = Reply(question, started_s, time.monotonic(), error=f"{type(error).__name__}: {error}")
        self.replies.append(reply)

    async def _whole(self, question: int, started_s: float) -> Reply:
        raw = await self._client.chat.completions.with_raw_response.create(
            model=self._model,
            messages=self._questions[question].messages,  # type: ignore[arg-type]
            temperature=0.0,
            max_tokens=MAX_TOKENS,
        )
        completion = raw.parse()
        return Reply(
            question=question,
            started_s=started_s,
            ended_s=time.monotonic(),
            version=completion.model,
            header_version=raw.headers.get(_VERSION_HEADER, ""),
            replica=raw.headers.get(_REPLICA_HEADER, ""),
            text=completion.choices[0].message.content or "",
        )

    async def _streamed(self, question: int, started_s: float) -> Reply:
        raw = await self._client.chat.completions.with_raw_response.create(
            model=self._model,
            messages=self._questions[question].messages,  # type: ignore[arg-type]
            temperature=0.0,
            max_tokens=MAX_TOKENS,
            stream=True,
        )
        chunks = cast("AsyncStream[ChatCompletionChunk]", raw.parse())
        versions: set[str] = set()
        text = ""
        ttft_s: float | None = None
        is_whole = False
        async for chunk in chunks:
            ttft_s = ttft_s or time.monotonic() - started_s
            versions.add(chunk.model)
            for choice in chunk.choices:
                text += choice.delta.content or ""
                is_whole = is_whole or choice.finish_reason is not None
        return Reply(
            question=question,
            started_s=started_s,
            ended_s=time.monotonic(),
            version="|".join(sorted(versions)),
            header_version=raw.headers.get(_VERSION_HEADER, ""),
            replica=raw.headers.get(_REPLICA_HEADER, ""),
            text=text,
            ttft_s=ttft_s,
            error="" if is_whole else "the stream ended before the answer did",
        )


def is_wrong_version(reply: Reply, answers: Mapping[str, Sequence[str]]) -> bool:
    """Whether the reply names one version and speaks as another. `answers[version][question]` are the greedy ones."""
    if reply.version != reply.header_version or reply.version not in answers:
        return True
    own = answers[reply.version][reply.question]
    others = {texts[reply.question] for version, texts in answers.items() if version != reply.version}
    return reply.text != own and reply.text in others


def count_by_replica(replies: Iterable[Reply]) -> dict[str, int]:
    """Replies that each replica gave, by its name; those that failed count for nobody."""
    return dict(sorted(Counter(reply.replica for reply in replies if not reply.error).items()))


def count_in_flight(replies: Sequence[Reply], moment_s: float) -> int:
    return sum(reply.started_s <= moment_s <= reply.ended_s for reply in replies)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all values do not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
