"""What an answer looks like, whatever it says: how long it is, and whether it repeats itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollout.rewards.base import BuiltIn
from rollout.types import Prompt, Trajectory


class Length(BuiltIn):
    """A reward for the number of sampled tokens, over all turns."""

    kind: Literal["shorter", "at_most", "target"]
    """`shorter`: falls from 1 at no token to 0 at `tokens`. `at_most`: 1 up to `tokens`, then falls to 0 within `slack`
    more. `target`: 1 at `tokens`, falls to 0 at `slack` tokens less or more."""
    tokens: int = Field(ge=1)
    """The number of tokens meant by `kind`."""
    slack: int | None = Field(None, ge=0)
    """Over how many tokens it falls; 0: at once. None: as many as `tokens`."""

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> float:
        num_tokens = trajectory.num_tokens
        match self.kind:
            case "shorter":
                return max(0.0, 1.0 - num_tokens / self.tokens)
            case "at_most":
                return self._fall(max(0, num_tokens - self.tokens))
            case "target":
                return self._fall(abs(num_tokens - self.tokens))

    def _fall(self, off_by: int) -> float:
        slack = self.tokens if self.slack is None else self.slack
        return max(0.0, 1.0 - off_by / slack) if slack else float(off_by == 0)


def repeated_share(token_ids: tuple[int, ...], ngram: int) -> float:
    """The share of n-grams that are an earlier one once more: 1 - distinct / all; 0 where there is none."""
    ngrams = [token_ids[start : start + ngram] for start in range(len(token_ids) - ngram + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


class Repetition(BuiltIn):
    """1 where no n-gram of sampled tokens comes twice in a turn; falls to 0 as their repeated share rises."""

    ngram: int = Field(3, ge=1)
    """Tokens of one n-gram."""
    max_share: float = Field(1.0, gt=0, le=1)
    """The repeated share of the worst turn at which the reward is 0."""

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> float:
        worst = max((repeated_share(turn.token_ids, self.ngram) for turn in trajectory.turns), default=0.0)
        return max(0.0, 1.0 - worst / self.max_share)
