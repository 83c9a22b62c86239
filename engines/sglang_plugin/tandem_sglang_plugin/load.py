"""The engine's load now, from SGLang's own snapshot and from what is inside it."""

from __future__ import annotations

from .asgi import Scope
from .inner import Inner
from .requests import Requests


async def stats(outer: Scope, inner: Inner, requests: Requests) -> dict[str, int | float]:
    """What `GET /tandem/stats` answers; raises `Refusal`. Running + waiting is counted here: the snapshot stands still
    between steps."""
    loads = (await inner.read(outer, "/v1/loads?include=core")).get("loads", [])
    waiting = min(len(requests), sum(int(load.get("num_waiting_reqs", 0)) for load in loads))
    return {
        "num_running": len(requests) - waiting,
        "num_waiting": waiting,
        "kv_cache_usage": max((float(load.get("token_usage", 0.0)) for load in loads), default=0.0),
        "prefix_cache_hit_tokens": requests.hit_tokens,
        "num_aborted": requests.num_aborted,
    }
