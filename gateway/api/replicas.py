"""`/v1/replicas`: every replica as the gateway knows it now."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from engines.capabilities import in_order
from gateway.api.access import Access
from gateway.board import ReplicaView, SlotUse

router = APIRouter(prefix="/v1/replicas", tags=["replicas"])


@router.get("")
async def list_replicas(services: Access) -> dict[str, Any]:
    """State, versions, load, queue and latency of each, and what its server can't do (`missing`; `unknown`: perhaps).

    Never its address, which only the gateway may call.
    """
    views = services.board.views(services.routes)
    return {"object": "list", "data": [_document(view) for view in views], "has_more": False}


def _document(view: ReplicaView) -> dict[str, Any]:
    return {
        "id": view.name,
        "object": "replica",
        "engine": view.engine,
        "state": view.state,
        "detail": view.detail,
        "in_service": view.in_service,
        "versions": [str(version) for version in view.versions],
        "in_flight": view.in_flight,
        "num_running": view.num_running,
        "num_waiting": view.num_waiting,
        "kv_cache_usage": view.kv_cache_usage,
        "ttft_ms_p50": view.ttft_ms_p50,
        "ttft_ms_p95": view.ttft_ms_p95,
        "ejected_for_s": view.ejected_for_s,
        "slots": _slots(view.slots),
        "seen_s_ago": view.seen_s_ago,
        "missing": list(in_order(view.capabilities.missing)),
        "unknown": list(in_order(view.capabilities.unknown)),
    }


def _slots(slots: SlotUse) -> dict[str, Any]:
    holders = [{"version": str(holder.version), "owner": holder.owner} for holder in slots.holders]
    return {"used": slots.used, "total": slots.total, "holders": holders}
