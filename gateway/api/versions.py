"""`/v1/versions`: the adapters that are registered, and the door through which a new one comes in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from engines.errors import BadRequest
from engines.types import VersionName
from gateway.api.access import Access
from gateway.store import AliasFlip
from gateway.types import VersionRow

router = APIRouter(prefix="/v1/versions", tags=["versions"])


class NewVersion(BaseModel):
    """An adapter directory on the gateway's machine, for one alias."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alias: str = Field(min_length=1, max_length=63)
    path: str = Field(min_length=1, max_length=4096)


@router.get("")
def list_versions(services: Access, alias: Annotated[str | None, Query(max_length=64)] = None) -> dict[str, Any]:
    rows = services.store.versions.list(alias)
    return {"object": "list", "data": [_document(row) for row in rows], "has_more": False}


@router.get("/{version}")
def get_version(version: str, services: Access) -> dict[str, Any]:
    name = VersionName.parse(version)
    row = services.store.versions.get(name)
    return _document(row) | {"history": [_flip(flip) for flip in services.store.aliases.history(name)]}


@router.post("", status_code=201)
async def register_version(body: NewVersion, services: Access) -> dict[str, Any]:
    """Verifies the directory and copies it into the registry; 422 with the reason if it is refused."""
    await run_in_threadpool(services.store.aliases.get, body.alias)
    path = Path(body.path)
    if "\x00" in body.path or not path.is_absolute():
        raise BadRequest("path: must be an absolute path on the gateway's machine.", param="path")
    return _document(await services.publisher.register(body.alias, path))


def _document(row: VersionRow) -> dict[str, Any]:
    return {
        "id": str(row.name),
        "object": "version",
        "alias": row.name.alias,
        "number": row.name.number,
        "engine": row.engine,
        "state": row.state.value,
        "created": row.created.timestamp(),
        "parent": row.parent,
        "base_hash": row.base_hash,
        "weights_sha256": row.weights_sha256,
        "data_hash": row.data_hash,
        "rank": row.rank,
        "job": row.job,
        "metrics": dict(row.metrics),
        "proof": row.proof,
        "path": str(row.path),
        "reason": row.reason,
    }


def _flip(flip: AliasFlip) -> dict[str, Any]:
    return {
        "alias": flip.alias,
        "generation": flip.generation,
        "at": flip.at.timestamp(),
        "actor": flip.actor,
        "action": flip.action,
        "from": str(flip.live_before),
        "to": str(flip.live_after),
    }
