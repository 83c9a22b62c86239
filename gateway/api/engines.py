"""`/v1/engines`: which base model each engine serves, and the way to release another one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from engines.errors import BadRequest
from gateway.api.access import Access
from gateway.generation import GenerationRow, GenerationState
from gateway.services import Services

router = APIRouter(prefix="/v1/engines", tags=["engines"])


class Release(BaseModel):
    """A model's directory on the gateway's machine, readable wherever the engine's replicas run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, max_length=4096)
    in_place: bool = False


@router.get("")
async def list_engines(services: Access) -> dict[str, Any]:
    rows = await run_in_threadpool(services.store.generations.list)
    engines = [_document(name, tuple(of), services) for name, of in groupby(rows, lambda row: row.engine)]
    return {"object": "list", "data": engines, "has_more": False}


@router.get("/{engine}")
async def get_engine(engine: str, services: Access) -> dict[str, Any]:
    return _document(engine, await run_in_threadpool(services.store.generations.of, engine), services)


@router.post("/{engine}/release", status_code=202)
async def release(engine: str, body: Release, services: Access) -> dict[str, Any]:
    """Begins a swap, rolling or in place; `GET /v1/engines/{engine}` says how it goes."""
    path = Path(body.path)
    if "\x00" in body.path or not path.is_absolute():
        raise BadRequest("path: must be an absolute path on the gateway's machine.", param="path")
    with services.drain.publishing():
        return _generation(await services.releaser.release(engine, path, in_place=body.in_place), services)


def _document(name: str, rows: Sequence[GenerationRow], services: Services) -> dict[str, Any]:
    live = next(row for row in rows if row.state is GenerationState.LIVE)
    return {
        "id": name,
        "object": "engine",
        "live": str(live.base),
        "model": str(live.model),
        "generations": [_generation(row, services) for row in rows],
    }


def _generation(row: GenerationRow, services: Services) -> dict[str, Any]:
    progress = services.releaser.progress_of(row)
    return {
        "id": row.name,
        "object": "generation",
        "engine": row.engine,
        "number": row.number,
        "version": str(row.base),
        "state": row.state.value,
        "model": str(row.model),
        "base_hash": row.base_hash,
        "in_place_of": row.host,
        "created": row.created.timestamp(),
        "reason": row.reason,
        "steps": [{"step": step.step, "seconds": step.seconds} for step in progress.steps],
        "step": progress.step or None,
        "is_under_way": progress.is_under_way,
    }
