"""The curves of a job, from its events: one series of numbers for each metric of its steps and evaluations.

A resumed job goes back to its checkpoint: what it had logged of later steps is no part of its curves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.jobs import JobEvent

PARTS = "parts"
"""The field of an event that holds the mean of each reward function; its curves are `reward.NAME`."""
EVALUATION = "eval."
"""What the names of curves of evaluations begin with."""
MAX_OTHERS = 24

_FIRST = ("reward", PARTS, "kl", "entropy", "clip_fraction", "num_tokens", "staleness_mean", "mismatch")
_THEN = ("learner_idle", "engine_idle", "loss")
_NO_CURVES = frozenset({"step", "num_asked"})


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric: `values[i]` at optimizer step `steps[i]`, ascending. A value may be NaN or infinite."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def finite(self) -> tuple[float, ...]:
        return tuple(filter(math.isfinite, self.values))


@dataclass(frozen=True, slots=True)
class Curves:
    """All curves, those of the known metrics first. `num_left_out`: metrics over the bound on others.

    `bound`: the newest line that says whether learner or rollout is what the run waits for; empty: none was said.
    """

    curves: tuple[Curve, ...]
    num_left_out: int
    bound: str


def curves_of(events: Iterable[JobEvent]) -> Curves:
    """Of events in the order in which they were written."""
    points: dict[str, dict[int, float]] = {}
    bound = ""
    for event in events:
        if event.type == "bound":
            bound = event.message
        elif event.type == "resumed":
            _go_back(points, event)
        elif event.type in ("step", "evaluation"):
            _add(points, event)
    names = [name for name in points if points[name]]
    known = sorted((name for name in names if _rank(name) is not None), key=lambda name: _rank(name) or 0)
    others = [name for name in names if _rank(name) is None]
    curves = tuple(_curve(name, points[name]) for name in (*known, *others[:MAX_OTHERS]))
    return Curves(curves, max(0, len(others) - MAX_OTHERS), bound)


def _go_back(points: dict[str, dict[int, float]], event: JobEvent) -> None:
    step = _step_of(event)
    if step is not None:
        for name, by_step in points.items():
            points[name] = {at: value for at, value in by_step.items() if at <= step}


def _add(points: dict[str, dict[int, float]], event: JobEvent) -> None:
    step = _step_of(event)
    if step is None:
        return
    prefix = EVALUATION if event.type == "evaluation" else ""
    for name, value in _numbers(event.data).items():
        points.setdefault(prefix + name, {})[step] = value


def _step_of(event: JobEvent) -> int | None:
    step = event.data.get("step")
    return step if isinstance(step, int) else None


def _numbers(data: Mapping[str, object]) -> dict[str, float]:
    parts = data.get(PARTS)
    named = {f"reward.{key}": value for key, value in parts.items()} if isinstance(parts, Mapping) else {}
    plain = {name: value for name, value in data.items() if name not in _NO_CURVES}
    return {
        name: float(value)
        for name, value in {**plain, **named}.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _rank(name: str) -> int | None:
    """Where a known metric stands; its parts and evaluations stand right behind the reward."""
    if name.startswith(("reward.", EVALUATION)):
        return _FIRST.index(PARTS)
    known = (*_FIRST, *_THEN)
    return known.index(name) if name in known else None


def _curve(name: str, by_step: Mapping[int, float]) -> Curve:
    steps = tuple(sorted(by_step))
    return Curve(name, steps, tuple(by_step[step] for step in steps))
