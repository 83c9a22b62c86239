"""The demo's user: the official OpenAI SDK, unmodified, and nothing else for completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gateway.demo.questions import Answer, Question

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MAX_TOKENS = 8
_TIMEOUT_S = 60.0


def open_client(url: str) -> AsyncOpenAI:
    """No retries: a request that fails is to be seen."""
    import openai

    http = openai.DefaultAsyncHttpxClient(trust_env=False)  # a proxy of the machine has no business on loopback
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=_TIMEOUT_S, http_client=http)


async def ask(client: AsyncOpenAI, model: str, question: Question) -> Answer:
    """The greedy answer, not streamed. Raises what the SDK raises."""
    started_s = time.monotonic()
    completion = await client.chat.completions.create(
        model=model,
        messages=question.messages,  # type: ignore[arg-type]
        temperature=0.0,
        max_tokens=MAX_TOKENS,
    )
    text = completion.choices[0].message.content or ""
    return Answer(question, completion.id, completion.model, text, started_s, time.monotonic())


async def ask_all(
    client: AsyncOpenAI,
    model: str,
    questions: Sequence[Question],
    concurrency: int,
    on_answer: Callable[[], None] = lambda: None,
) -> tuple[Answer, ...]:
    """Asks every question once, `concurrency` at a time; answers in the order of the questions."""
    free = asyncio.Semaphore(concurrency)

    async def ask_one(question: Question) -> Answer:
        async with free:
            answer = await ask(client, model, question)
        on_answer()
        return answer

    return tuple(await asyncio.gather(*(ask_one(question) for question in questions)))
