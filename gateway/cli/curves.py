"""A job's curves on a terminal and as JSON: one row for each metric, its course drawn in blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from gateway.cli.console import print_table, say

if TYPE_CHECKING:
    from gateway.curves import Curve, Curves

WIDTH = 48
_BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_NOT_FINITE = "!"


def print_curves(curves: Curves) -> None:
    """Nothing if there are none."""
    if curves.curves:
        steps = [step for curve in curves.curves for step in (curve.steps[0], curve.steps[-1])]
        columns = ("metric", "first", "last", "min", "max", f"steps {min(steps)} to {max(steps)}")
        print_table(columns, [_row(curve) for curve in curves.curves])
    if curves.num_left_out:
        say(f"{curves.num_left_out} more metrics are not drawn; they are in the job's events.jsonl")
    if curves.bound:
        print(curves.bound)


def documents_of(curves: Curves) -> list[dict[str, object]]:
    """What `--json` prints: a value that is not finite is null."""
    return [
        {
            "name": curve.name,
            "steps": list(curve.steps),
            "values": [value if math.isfinite(value) else None for value in curve.values],
        }
        for curve in curves.curves
    ]


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """At most `width` blocks, each the mean of its share of the values; `!` where one of them is not finite."""
    means = [_mean(share) for share in _shares(values, width)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_block(mean, low, high) for mean in means)


def _row(curve: Curve) -> tuple[str, ...]:
    finite = curve.finite
    low, high = (_number(min(finite)), _number(max(finite))) if finite else ("-", "-")
    return curve.name, _number(curve.values[0]), _number(curve.values[-1]), low, high, sparkline(curve.values)


def _shares(values: Sequence[float], width: int) -> list[Sequence[float]]:
    num = min(width, len(values))
    bounds = [len(values) * index // num for index in range(num + 1)] if num else [0]
    return [values[start:end] for start, end in pairwise(bounds)]


def _mean(values: Sequence[float]) -> float:
    return sum(value / len(values) for value in values)


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return _NOT_FINITE
    if high <= low:
        return _BLOCKS[len(_BLOCKS) // 2 - 1]
    share = (value / 2 - low / 2) / (high / 2 - low / 2)  # halves: the difference of the largest numbers is infinite
    return _BLOCKS[min(len(_BLOCKS) - 1, int(share * len(_BLOCKS)))]


def _number(value: float) -> str:
    return f"{value:.4g}"
