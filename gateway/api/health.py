"""`/healthz` (the process lives), `/readyz` (somebody can answer), `/metrics` (Prometheus)."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from engines.errors import Unavailable
from gateway.api.access import Access
from gateway.errors import body_of, headers_of
from gateway.services import Services

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def check_health() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz")
async def check_ready(services: Access) -> JSONResponse:
    """503 while no replica is ready, and from the moment that the gateway shuts down."""
    if services.drain.is_draining:
        error, status = Unavailable("This gateway is shutting down."), "shutting down"
    elif not services.routes.is_ready():
        error, status = Unavailable("No replica is ready yet."), "not ready"
    else:
        return JSONResponse({"status": "ready", "replicas": _replicas(services)})
    body = body_of(error) | {"status": status, "replicas": _replicas(services)}
    return JSONResponse(body, error.status, headers_of(error))


@router.get("/metrics")
async def read_metrics(services: Access) -> Response:
    for row in services.routes.snapshot.aliases.values():
        services.metrics.alias_generation.labels(row.name).set(row.generation)
    services.metrics.replica_up.clear()  # of replicas that are gone, with the generation that they were of
    for name, in_service in _replicas(services).items():
        services.metrics.replica_up.labels(name).set(in_service)
    return Response(services.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _replicas(services: Services) -> dict[str, bool]:
    """Every replica that is known, and whether it is in service."""
    return {view.name: view.in_service for view in services.board.views(services.routes)}
