"""Proof that an engine really serves an adapter, by differences.

On fixed prompts, (adapter - base) log-probabilities in the engine must agree with (adapter - base) in the learner.
Absolute values are never compared: number formats differ between the two (a quantized engine, a float32 learner), and
what they have in common is what the adapter changes. Where that change lies under the engine's numeric noise, the proof
is the weights' hash and the set of modules that the engine matched, which are checked in every case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engines.adapter import ProbeRecord
from engines.errors import AdapterRefused
from engines.profiles import FamilyProfile
from engines.types import LoadedAdapter, ProbeScore

NOISE = 0.02
"""Mean absolute log-probability under which an adapter's effect can't be told from a quantized engine's noise."""

MAX_RELATIVE_ERROR = 0.25
"""Largest error as a share of the effect. Measured on FP8: 0.01; a stale or missing adapter gives 1."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Mean absolute values over all probe tokens, in nats: what the adapter changes, and how far the two disagree."""

    effect: float
    error: float

    @property
    def is_measurable(self) -> bool:
        return self.effect >= NOISE


def check_delivery(loaded: LoadedAdapter, weights_sha256: str, modules: Iterable[str], profile: FamilyProfile) -> str:
    """The proof by hash and modules, in words. Raises `AdapterRefused` if the engine read or matched something else."""
    if loaded.sha256 != weights_sha256:
        raise AdapterRefused(f"the engine read other weights for {loaded.version} than it was sent; publish again")
    expected = {profile.engine_module(name) for name in modules}
    matched = {profile.engine_module(name) for name in loaded.modules}
    if missing := sorted(expected - matched):
        raise AdapterRefused(
            f"the engine matched {len(matched)} of the {len(expected)} modules of {loaded.version}; "
            f"the first that it dropped is {missing[0]}"
        )
    return f"weights hash and {len(matched)} matched modules"


def check_agreement(
    records: Sequence[ProbeRecord], base: Sequence[ProbeScore], adapter: Sequence[ProbeScore]
) -> Agreement:
    """Compares the engine's two passes with the learner's. Raises `AdapterRefused` naming the prompt or the error."""
    effects: list[float] = []
    errors: list[float] = []
    for number, (record, plain, tuned) in enumerate(zip(records, base, adapter, strict=True)):
        _check_tokens(number, record, plain, tuned)
        learned = [a - b for a, b in zip(record.adapter_logprobs, record.base_logprobs, strict=True)]
        served = [a - b for a, b in zip(tuned.logprobs, plain.logprobs, strict=True)]
        effects += [abs(x) for x in learned]
        errors += [abs(x - y) for x, y in zip(served, learned, strict=True)]
    agreement = Agreement(effect=_mean(effects), error=_mean(errors))
    limit = max(NOISE, MAX_RELATIVE_ERROR * agreement.effect)
    if not agreement.error <= limit:  # also refuses NaN
        raise AdapterRefused(
            f"the engine does not serve what was trained: adapter - base log-probabilities differ from the "
            f"learner's by {agreement.error:.3f} on average (limit {limit:.3f}, effect {agreement.effect:.3f})"
        )
    return agreement


def _check_tokens(number: int, record: ProbeRecord, plain: ProbeScore, tuned: ProbeScore) -> None:
    if not (tuple(record.token_ids) == plain.token_ids == tuned.token_ids):
        raise AdapterRefused(
            f"probe prompt {number} ('{record.text[:60]}') is tokenized otherwise by the engine than by the learner; "
            "the two must use the same processor files"
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
