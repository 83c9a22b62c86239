"""`POST /v1/feedback` and `/batch`: acknowledged after the commit, stored once however often they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.errors import BadRequest, DeadlineExceeded, TandemError
from gateway.api.access import Access
from gateway.api.signals import METRICS, FeedbackBody, named_completions, read_feedback
from gateway.errors import body_of, json_response, plain_message
from gateway.services import Services
from gateway.store import Stored
from gateway.types import Feedback

router = APIRouter(prefix="/v1/feedback", tags=["feedback"])

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


class FeedbackBatch(BaseModel):
    """Up to 1,000 items, each a body of `POST /v1/feedback`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: list[Any] = Field(min_length=1, max_length=1000)


@router.post("", status_code=201)
async def add_feedback(body: FeedbackBody, services: Access, idempotency_key: IdempotencyKey = None) -> Response:
    """201 for a new row, 200 with the first answer for a repeated call, 409 if the key came with another body."""
    (result,) = await _store(services, [_read(body, idempotency_key)])
    if isinstance(result, TandemError):
        _count(services, body.metric, result)
        raise result
    _count(services, body.metric, result)
    return json_response(_receipt(result), _status(result))


@router.post("/batch")
async def add_batch(body: FeedbackBatch, services: Access, idempotency_key: IdempotencyKey = None) -> Response:
    """Always 200, with a result for each item in order; item N of a call with a key has the key `KEY#N`."""
    rows = [_read_item(item, _item_key(idempotency_key, index)) for index, item in enumerate(body.items)]
    results = await _store(services, rows)
    for row, result in zip(rows, results, strict=True):
        _count(services, row.metric if isinstance(row, Feedback) else "invalid", result)
    answers = [_item_answer(index, result) for index, result in enumerate(results)]
    return json_response({"object": "list", "data": answers}, 200)


async def _store(services: Services, rows: Sequence[Feedback | TandemError]) -> list[Stored | TandemError]:
    """Adds what is valid in one transaction; results in the order of `rows`."""
    checked = await _settle(services, rows)
    valid = [row for row in checked if isinstance(row, Feedback)]
    stored = iter(await asyncio.to_thread(services.store.feedback.add_all, valid)) if valid else iter(())
    return [next(stored) if isinstance(row, Feedback) else row for row in checked]


async def _settle(services: Services, rows: Sequence[Feedback | TandemError]) -> list[Feedback | TandemError]:
    """Waits, all together and within one deadline, for completions that are not recorded yet."""
    return list(await asyncio.gather(*(_settle_one(services, row) for row in rows)))


async def _settle_one(services: Services, row: Feedback | TandemError) -> Feedback | TandemError:
    timeout_s = services.config.gateway.feedback_wait_s
    if isinstance(row, Feedback):
        for completion_id in named_completions(row):
            if not await services.recorder.wait_for(completion_id, timeout_s):
                return DeadlineExceeded(f"Completion {completion_id} has not ended yet; send this again after its end.")
    return row


def _read(body: FeedbackBody, key: str | None) -> Feedback | TandemError:
    try:
        return read_feedback(body, key)
    except BadRequest as error:
        return error


def _read_item(item: Any, key: str | None) -> Feedback | TandemError:
    try:
        return _read(FeedbackBody.model_validate(item), key)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        param = str(problem["loc"][0]) if problem["loc"] else None
        return BadRequest(f"{param or 'item'}: {plain_message(problem)}", param=param)


def _item_key(key: str | None, index: int) -> str | None:
    return None if key is None else f"{key}#{index}"


def _count(services: Services, metric: str, result: Stored | TandemError) -> None:
    known = metric if metric in METRICS else "invalid"
    services.metrics.count_feedback(known, result.code if isinstance(result, TandemError) else result.row.status.value)


def _status(result: Stored) -> int:
    return 201 if result.created else 200


def _receipt(result: Stored) -> dict[str, Any]:
    return {"id": result.row.id, "object": "feedback", "status": result.row.status.value}


def _item_answer(index: int, result: Stored | TandemError) -> dict[str, Any]:
    if isinstance(result, TandemError):
        return {"index": index, "status_code": result.status, **body_of(result)}
    return {"index": index, "status_code": _status(result), "feedback": _receipt(result)}
