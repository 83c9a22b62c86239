"""Boxes that an answer points at, compared with a row's by intersection over union."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rollout.rewards.base import ByColumn, bad_value
from rollout.rewards.json_field import NotJson, parse_json
from rollout.types import Prompt, Trajectory

MAX_BOXES = 256
MAX_DEPTH = 8
_KEYS = ("bbox_2d", "bbox", "box", "boxes")
_MAX_COORDINATE = 1e9
_NUMBER = r"\s*([-+]?\d{1,9}(?:\.\d{1,9})?)\s*"
_IN_TEXT = re.compile(rf"[\[(]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[\])]")


@dataclass(frozen=True, slots=True)
class Box:
    """Corners in any one unit, x1 < x2 and y1 < y2; else its area is 0."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def area(self) -> float:
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)


def iou(a: Box, b: Box) -> float:
    """Area of the intersection over that of the union, 0 to 1; 0 where both are empty."""
    shared = Box(max(a.x1, b.x1), max(a.y1, b.y1), min(a.x2, b.x2), min(a.y2, b.y2)).area
    union = a.area + b.area - shared
    return min(1.0, shared / union) if union > 0 and a.area > 0 and b.area > 0 else 0.0


def boxes_of(value: Any) -> tuple[Box, ...]:
    """Those of a JSON value: `[x1, y1, x2, y2]`, an object with a `bbox_2d`, `bbox`, `box` or `boxes`, or lists."""
    return tuple(_find(value))


def boxes_in(text: str) -> tuple[Box, ...]:
    """Those of an answer: of its JSON if it is JSON, else each `[x1, y1, x2, y2]` in it; at most `MAX_BOXES`."""
    try:
        found = boxes_of(parse_json(text))
    except NotJson:
        found = tuple(Box(*map(float, match)) for match in _IN_TEXT.findall(text))
    return found[:MAX_BOXES]


class BoxIou(ByColumn):
    """The mean over the row's boxes of the best IoU with a box of the answer."""

    penalise_extra: bool = True
    """Where the answer has more boxes than the row, divide by their number: naming many boxes does not pay."""

    def expected(self, prompt: Prompt) -> tuple[Box, ...]:
        value = super().expected(prompt)
        boxes = boxes_in(value) if isinstance(value, str) else boxes_of(value)
        if not boxes or not all(box.area > 0 for box in boxes):
            raise bad_value(prompt, self.field, "a box [x1, y1, x2, y2] with x1 < x2 and y1 < y2, or a list of them")
        return boxes

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> float:
        expected, said = self.expected(prompt), boxes_in(trajectory.text)
        total = sum(max((iou(box, other) for other in said), default=0.0) for box in expected)
        return total / (max(len(expected), len(said)) if self.penalise_extra else len(expected))


def _find(value: Any, depth: int = 0) -> Iterator[Box]:
    if depth > MAX_DEPTH:
        return
    if isinstance(value, dict):
        yield from _find(next((value[key] for key in _KEYS if key in value), None), depth + 1)
    elif isinstance(value, list | tuple):
        if len(value) == 4 and all(_is_coordinate(item) for item in value):
            yield Box(*map(float, value))
        else:
            for item in value:
                yield from _find(item, depth + 1)


def _is_coordinate(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and abs(value) <= _MAX_COORDINATE
