"""What a reward is, and what the built-in ones share: checked options, and the row's column that they read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from engines.errors import BadRequest
from rollout.types import Prompt, Trajectory

Reward = Callable[[Prompt, Trajectory], float | Awaitable[float]]
MakeReward = Callable[..., Reward]


class BuiltIn(BaseModel):
    """A built-in reward: its options are its fields, and it is called with a prompt and a trajectory."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @property
    def column(self) -> str | None:
        """The column of a row that it reads; None: none."""
        return None

    def check_row(self, prompt: Prompt) -> None:
        """Raises `BadRequest` naming the row if it lacks what this reward reads, or holds what it cannot read."""

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> float | Awaitable[float]:
        raise NotImplementedError


class ByColumn(BuiltIn):
    """A reward that compares the answer with a column of the row."""

    field: str = Field("answer", min_length=1)
    """The column that holds what is right."""

    @property
    def column(self) -> str | None:
        return self.field

    def check_row(self, prompt: Prompt) -> None:
        self.expected(prompt)

    def expected(self, prompt: Prompt) -> Any:
        return read_column(prompt, self.field)


def read_column(prompt: Prompt, field: str) -> Any:
    """The row's value; raises `BadRequest` naming the row if it has no such column, or null in it."""
    value = prompt.fields.get(field)
    if value is None:
        has = ", ".join(sorted(prompt.fields)) or "none"
        raise BadRequest(
            f"row '{prompt.id}' has no column '{field}', which a reward reads (its columns: {has}); "
            "add it to the data, or name another one by the option 'field'",
            param="field",
        )
    return value


def bad_value(prompt: Prompt, field: str, needed: str) -> BadRequest:
    """The error of a row whose column does not hold what a reward needs there."""
    return BadRequest(f"row '{prompt.id}': column '{field}' is not {needed}; correct the row", param="field")


def accepted_texts(prompt: Prompt, field: str) -> tuple[str, ...]:
    """The answers that count as right: one text or number, or a list of them, any of which will do."""
    value = read_column(prompt, field)
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(item, str | int | float) for item in values):
        raise bad_value(prompt, field, "a text or number, or a list of them")
    return tuple(str(item) for item in values)
