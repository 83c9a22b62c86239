"""`GET /v1/models`: the aliases, and every version that can be named."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from engines.errors import NotFound
from gateway.api.access import Access
from gateway.route import Routes

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(services: Access) -> dict[str, Any]:
    return {"object": "list", "data": list(_cards(services.routes.snapshot).values())}


@router.get("/{model}")
async def get_model(model: str, services: Access) -> dict[str, Any]:
    card = _cards(services.routes.snapshot).get(model)
    if card is None:
        raise NotFound(f"No model '{model[:80]}'; GET /v1/models lists those there are.", param="model")
    return card


def _cards(routes: Routes) -> dict[str, dict[str, Any]]:
    cards = {row.name: _card(row.name, str(row.live), f"{row.engine}@0") for row in routes.aliases.values()}
    for name, engine in sorted(routes.versions().items()):
        cards[str(name)] = _card(str(name), str(name), None if name.is_base else f"{engine}@0")
    return cards


def _card(name: str, version: str, parent: str | None) -> dict[str, Any]:
    # OpenAI's shape has a creation time; a model's is that of its version row, which is not on this path.
    return {"id": name, "object": "model", "created": 0, "owned_by": "tandem", "root": version, "parent": parent}
