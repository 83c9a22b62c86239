"""What users do with answers: they say what each should have been, and the answers that were right are confirmed.

Sent through the OpenAI SDK's own transport, each under an idempotency key; some are sent twice, as a client does that
lost the answer. Afterwards the gateway is asked for every row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gateway.client import FeedbackReceipt, StoredInteraction
from gateway.demo.questions import Answer

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_CONCURRENCY = 16


async def send_corrections(
    client: AsyncOpenAI, answers: Sequence[Answer], num_sent_twice: int, on_sent: Callable[[], None]
) -> None:
    """The right answer of every question, as a correction of what was answered."""
    free = asyncio.Semaphore(_CONCURRENCY)

    async def send(answer: Answer) -> None:
        async with free:
            await _send(client, answer)
        on_sent()

    await asyncio.gather(*(send(answer) for answer in answers))
    await asyncio.gather(*(_send(client, answer) for answer in answers[:num_sent_twice]))


async def count_stored(client: AsyncOpenAI, answers: Sequence[Answer]) -> int:
    """How many corrections the gateway holds for these answers; more than one of an answer all count."""
    free = asyncio.Semaphore(_CONCURRENCY)

    async def count(answer: Answer) -> int:
        async with free:
            document = await client.get(f"/interactions/{answer.completion_id}", cast_to=dict[str, Any])
        stored = StoredInteraction.model_validate(document)
        return sum(row.metric == "correction" and row.value == answer.question.answer for row in stored.feedback)

    return sum(await asyncio.gather(*(count(answer) for answer in answers)))


async def _send(client: AsyncOpenAI, answer: Answer) -> None:
    body = {"completion_id": answer.completion_id, "metric": "correction", "value": answer.question.answer}
    key = {"Idempotency-Key": f"demo-{answer.completion_id}"}
    document = await client.post("/feedback", cast_to=dict[str, Any], body=body, options={"headers": key})
    FeedbackReceipt.model_validate(document)
