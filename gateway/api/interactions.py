"""`GET /v1/interactions`: what was asked and answered, by which version, and what was said of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from gateway.api.access import Access
from gateway.store import InteractionQuery
from gateway.types import Feedback, Interaction

router = APIRouter(prefix="/v1/interactions", tags=["interactions"])

_MAX_UNIX_S = 253402300799


@router.get("")
def list_interactions(
    services: Access,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64)] = None,
    alias: Annotated[str | None, Query(max_length=64)] = None,
    version: Annotated[str | None, Query(max_length=80)] = None,
    metric: Annotated[str | None, Query(max_length=64)] = None,
    since: Annotated[float | None, Query(ge=0, le=_MAX_UNIX_S)] = None,
) -> dict[str, Any]:
    """Newest first; the next page is `after` the last id of this one. `since` is in Unix seconds."""
    moment = None if since is None else datetime.fromtimestamp(since, UTC)
    page = services.store.interactions.list(InteractionQuery(limit, after, alias, version, metric, moment))
    said = services.store.feedback.of_completions([row.id for row in page.rows])
    data = [_document(row, [one for one in said if one.completion_id == row.id]) for row in page.rows]
    return {"object": "list", "data": data, "has_more": page.has_more, "last_id": data[-1]["id"] if data else None}


@router.get("/{completion_id}")
async def get_interaction(completion_id: str, services: Access) -> dict[str, Any]:
    await services.recorder.wait_for(completion_id, services.config.gateway.feedback_wait_s)
    row = await run_in_threadpool(services.store.interactions.get, completion_id)
    return _document(row, await run_in_threadpool(services.store.feedback.of_completions, [completion_id]))


def _document(row: Interaction, said: Sequence[Feedback]) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "interaction",
        "created": row.created.timestamp(),
        "model": row.alias,
        "version": str(row.version),
        "replica": row.replica,
        "request": json.loads(row.request),
        "answer": row.answer,
        "finish_reason": row.finish_reason,
        "usage": {"prompt_tokens": row.prompt_tokens, "completion_tokens": row.completion_tokens},
        "ttft_ms": row.ttft_ms,
        "latency_ms": row.latency_ms,
        "status": row.status,
        "stream": row.stream,
        "images": list(row.images),
        "feedback": [_said(one) for one in said],
    }


def _said(row: Feedback) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "feedback",
        "metric": row.metric,
        "value": json.loads(row.value),
        "comment": row.comment,
        "tags": dict(row.tags),
        "status": row.status.value,
        "created": row.created.timestamp(),
    }
