"""How far an engine's log-probabilities of fixed answers are from those of transformers in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.adapter import ProbeRecord
from engines.types import ProbeScore

MAX_MEAN_ERROR = 0.02
"""Nats, of an unquantized engine in float32. Measured on the small models: under 0.001."""
MAX_MEAN_ERROR_ROUNDED = 0.3
"""Nats, of an engine in 16 bits or less: what rounding does to answers that the model finds unlikely."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Absolute differences over all tokens of all answers, in nats."""

    mean: float
    largest: float
    num_tokens: int

    def __str__(self) -> str:
        return f"mean {self.mean:.4f}, largest {self.largest:.4f} nats over {self.num_tokens} tokens"


def same_tokens(records: Sequence[ProbeRecord], scores: Sequence[ProbeScore]) -> bool:
    """Whether the engine renders and tokenizes the answers as the learner does."""
    return all(tuple(record.token_ids) == score.token_ids for record, score in zip(records, scores, strict=True))


def parity_of(records: Sequence[ProbeRecord], scores: Sequence[ProbeScore]) -> Parity:
    """Of the bare base."""
    errors = [
        abs(ours - theirs)
        for record, score in zip(records, scores, strict=True)
        for ours, theirs in zip(score.logprobs, record.base_logprobs, strict=True)
    ]
    return Parity(sum(errors) / len(errors), max(errors), len(errors))
