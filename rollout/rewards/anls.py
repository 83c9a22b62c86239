"""Average normalised Levenshtein similarity, the measure of document and scene-text question answering."""

from __future__ import annotations

from pydantic import Field

from rollout.rewards.base import ByColumn, accepted_texts
from rollout.rewards.text import normalise
from rollout.types import Prompt, Trajectory


def levenshtein(a: str, b: str) -> int:
    """The fewest insertions, deletions and substitutions of a character that make `b` of `a`; O(len(a) len(b))."""
    row = list(range(len(b) + 1))
    for i, of_a in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, of_b in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (of_a != of_b))
    return row[-1]


def similarity(a: str, b: str, threshold: float) -> float:
    """1 - NL where the normalised distance NL = distance / longer length is below `threshold`, else 0.

    The term of ANLS (Biten et al. 2019, "Scene Text Visual Question Answering", equation 1).
    """
    longer = max(len(a), len(b))
    if a == b:
        return 1.0
    if abs(len(a) - len(b)) / longer >= threshold:  # a bound from below, so that a long answer costs nothing
        return 0.0
    distance = levenshtein(a, b) / longer
    return 1.0 - distance if distance < threshold else 0.0


class Anls(ByColumn):
    """How near the answer is to the nearest of the accepted ones, case and whitespace aside."""

    threshold: float = Field(0.5, gt=0, le=1)
    """A normalised distance from which on the answer counts as wrong."""

    def expected(self, prompt: Prompt) -> tuple[str, ...]:
        return accepted_texts(prompt, self.field)

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> float:
        said = _plain(trajectory.text)
        return max(similarity(said, _plain(text), self.threshold) for text in self.expected(prompt))


def _plain(text: str) -> str:
    return normalise(text, whitespace=True, ignore_case=True)
