"""What probing a model found: one line for each thing that one wants of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """`works` was seen; `fails` was seen too; `unknown` could not be looked at, for the reason given."""

    WORKS = "works"
    FAILS = "fails"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`found` is a figure, or the reason."""

    subject: str
    outcome: Outcome
    found: str


def works(subject: str, found: str) -> Verdict:
    return Verdict(subject, Outcome.WORKS, found)


def fails(subject: str, found: str) -> Verdict:
    return Verdict(subject, Outcome.FAILS, found)


def unknown(subject: str, found: str) -> Verdict:
    return Verdict(subject, Outcome.UNKNOWN, found)


def all_work(verdicts: Sequence[Verdict]) -> bool:
    return all(verdict.outcome is Outcome.WORKS for verdict in verdicts)
