"""Answers compared as numbers."""

from __future__ import annotations

import math
import re

from pydantic import Field

from rollout.rewards.base import ByColumn, bad_value
from rollout.types import Prompt, Trajectory

# A minus after a word character or a bracket is a dash or a subtraction: "3-5", "x-5".
_NUMBER = re.compile(
    r"(?<![\w.)])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
    r"|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
    r"|(?<![\w.)])[-+]?\.\d+"
)
_MINUS = str.maketrans({"\N{MINUS SIGN}": "-"})


def last_number(text: str) -> float | None:
    """The last number that the text holds, thousands separated by commas or not; None without one, or not finite."""
    found = _NUMBER.findall(text.translate(_MINUS))
    number = float(found[-1].replace(",", "")) if found else math.inf
    return number if math.isfinite(number) else None


class Numeric(ByColumn):
    """1 where the last number of the answer is the expected one, within the larger of the two tolerances."""

    absolute: float = Field(1e-6, ge=0)
    """Tolerance in the number's own unit."""
    relative: float = Field(0.0, ge=0)
    """Tolerance as a share of the expected number: 0.01 is one percent."""

    def expected(self, prompt: Prompt) -> float:
        value = super().expected(prompt)
        number = last_number(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise bad_value(prompt, self.field, "a number")
        return float(number)

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> float:
        expected, said = self.expected(prompt), last_number(trajectory.text)
        if said is None:
            return 0.0
        return float(abs(said - expected) <= max(self.absolute, self.relative * abs(expected)))
