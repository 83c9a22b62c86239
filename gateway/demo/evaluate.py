"""Accuracy on the held-out questions: exact match of the greedy answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from engines.errors import TandemError
from gateway.demo.questions import Answer


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All answers of one version to the held-out questions, with the share that is right, in all and by kind."""

    version: str
    accuracy: float
    by_kind: tuple[tuple[str, float], ...]
    answers: tuple[Answer, ...]


def evaluate(answers: Sequence[Answer]) -> Evaluation:
    """Raises `TandemError` if more than one version answered: then the figures would be nobody's."""
    versions = {answer.version for answer in answers}
    if len(versions) != 1:
        raise TandemError(f"one evaluation was answered by several versions: {', '.join(sorted(versions))}")
    kinds: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        kinds[answer.question.kind].append(answer.is_right)
    by_kind = tuple((kind, _share(rights)) for kind, rights in sorted(kinds.items()))
    return Evaluation(versions.pop(), _share([answer.is_right for answer in answers]), by_kind, tuple(answers))


def _share(rights: Sequence[bool]) -> float:
    return round(sum(rights) / len(rights), 4)
