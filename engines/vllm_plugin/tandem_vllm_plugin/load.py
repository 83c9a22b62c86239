"""The engine's load now, from vLLM's own metrics."""

from __future__ import annotations

from typing import Any

from .guard import AbortCount


def stats(engine: Any) -> dict[str, int | float]:
    """What `GET /tandem/stats` answers. Running + waiting is counted live: the gauges stand still when no step runs."""
    samples = _samples()
    unfinished = len(engine.output_processor.request_states)
    waiting = min(unfinished, int(samples.get("vllm:num_requests_waiting", 0)))
    return {
        "num_running": unfinished - waiting,
        "num_waiting": waiting,
        "kv_cache_usage": samples.get("vllm:kv_cache_usage_perc", 0.0),
        "prefix_cache_hit_tokens": int(samples.get("vllm:prefix_cache_hits_total", 0)),
        "num_aborted": AbortCount.total,
    }


def _samples() -> dict[str, float]:
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    sums: dict[str, float] = {}
    for metric in get_prometheus_registry().collect():
        for sample in metric.samples:
            if sample.name.startswith("vllm:"):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums
