"""`/v1/aliases`: what each alias names, and the two ways to change it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from engines.errors import UnsupportedField
from engines.types import VersionName
from gateway.api.access import Access
from gateway.types import AliasRow, PublishReport

router = APIRouter(prefix="/v1/aliases", tags=["aliases"])


class Promotion(BaseModel):
    """The version that the alias is to name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = Field(min_length=1, max_length=80)
    canary_percent: float | None = None


@router.get("")
def list_aliases(services: Access) -> dict[str, Any]:
    return {"object": "list", "data": [_document(row) for row in services.store.aliases.all()], "has_more": False}


@router.get("/{alias}")
def get_alias(alias: str, services: Access) -> dict[str, Any]:
    return _document(services.store.aliases.get(alias))


@router.post("/{alias}/promote")
async def promote(alias: str, body: Promotion, services: Access) -> dict[str, Any]:
    """Stages, probes, flips, drains; answers with each step's time. An error leaves the alias as it was."""
    if body.canary_percent is not None:
        raise UnsupportedField("canary_percent: there are no canaries; leave it out.", param="canary_percent")
    with services.drain.publishing():
        return _report(await services.publisher.promote(alias, VersionName.parse(body.version)))


@router.post("/{alias}/rollback")
async def rollback(alias: str, services: Access) -> dict[str, Any]:
    """Names the previous version again."""
    with services.drain.publishing():
        return _report(await services.publisher.rollback(alias))


def _document(row: AliasRow) -> dict[str, Any]:
    return {
        "id": row.name,
        "object": "alias",
        "engine": row.engine,
        "live": str(row.live),
        "previous": None if row.previous is None else str(row.previous),
        "generation": row.generation,
    }


def _report(report: PublishReport) -> dict[str, Any]:
    return {
        "alias": report.alias,
        "version": str(report.version),
        "previous": None if report.previous is None else str(report.previous),
        "generation": report.generation,
        "seconds": report.seconds,
        "steps": {step.step: step.seconds for step in report.steps},
        "proof": report.proof,
        "replicas": list(report.replicas),
    }
