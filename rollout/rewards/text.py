"""Answers compared as text: the whole of it, or by a regular expression."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from rollout.rewards.base import BuiltIn, ByColumn, accepted_texts
from rollout.types import Prompt, Trajectory


def normalise(text: str, *, whitespace: bool, ignore_case: bool) -> str:
    """Runs of whitespace become one space and none at the ends; letters lose their case."""
    text = " ".join(text.split()) if whitespace else text
    return text.casefold() if ignore_case else text


class ExactMatch(ByColumn):
    """1 where the answer is the expected text, or one of them."""

    normalise_whitespace: bool = True
    """Whether runs of whitespace count as one space and those at the ends as nothing."""
    ignore_case: bool = False
    """Whether `Yes` is `yes`."""

    def expected(self, prompt: Prompt) -> tuple[str, ...]:
        return accepted_texts(prompt, self.field)

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> float:
        said = self._normalise(trajectory.text)
        return float(any(said == self._normalise(text) for text in self.expected(prompt)))

    def _normalise(self, text: str) -> str:
        return normalise(text, whitespace=self.normalise_whitespace, ignore_case=self.ignore_case)


class Regex(BuiltIn):
    """1 where the pattern is found in the answer; with `field`, where its first group is the expected text besides."""

    pattern: str = Field(min_length=1)
    """A Python regular expression; `^` and `$` match at lines, `.` matches line ends."""
    field: str | None = Field(None, min_length=1)
    """The column that the first group of the first match is compared with; none: being found is enough."""
    ignore_case: bool = False
    """Of the pattern, and of the comparison."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _has_group(self) -> Regex:
        if self.field is not None and re.compile(self.pattern).groups == 0:
            raise ValueError("field: the pattern has no group (...) to compare with the column")
        return self

    @property
    def column(self) -> str | None:
        return self.field

    def check_row(self, prompt: Prompt) -> None:
        if self.field is not None:
            accepted_texts(prompt, self.field)

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> float:
        flags = re.MULTILINE | re.DOTALL | (re.IGNORECASE if self.ignore_case else re.NOFLAG)
        accepted = None if self.field is None else accepted_texts(prompt, self.field)
        found = re.search(self.pattern, trajectory.text, flags)  # the re module caches compiled patterns
        if found is None or accepted is None:
            return float(found is not None)
        said = self._normalise(found.group(1) or "")
        return float(any(said == self._normalise(text) for text in accepted))

    def _normalise(self, text: str) -> str:
        return normalise(text, whitespace=True, ignore_case=self.ignore_case)
