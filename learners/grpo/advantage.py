"""How much better than its group each trajectory was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean, stdev

from engines.errors import Internal
from learners.grpo.presets import Baseline, LossSpec
from rollout.config import RewardConfig
from rollout.types import Score

EPSILON = 1e-4
"""Added to a standard deviation before dividing by it; TRL's."""


def advantages(scores: Sequence[Sequence[Score]], weights: Mapping[str, float], spec: LossSpec) -> list[list[float]]:
    """One finite number for each score, in the same shape: groups, then members, of any number.

    A group whose members were all rewarded alike gets exact zeros. `weights`, of each reward by its name
    (`weights_of`), are used only with `normalise_each_reward`: `Score.total` is weighted already. Raises `Internal`
    where a score is not a finite number.
    """
    _check_finite(scores)
    if spec.normalise_each_reward:
        return _gdpo(scores, weights)
    totals = [[score.total for score in group] for group in scores]
    centred = [_centred(group, spec.baseline) for group in totals]
    if spec.scale == "none":
        return centred
    batch_std = _std([total for group in totals for total in group])
    stds = [batch_std if spec.scale == "batch" else _std(group) for group in totals]
    return [[value / (std + EPSILON) for value in group] for group, std in zip(centred, stds, strict=True)]


def weights_of(rewards: Sequence[RewardConfig]) -> dict[str, float]:
    """The weight of each reward that adds to the sum, by the name it has in `Score.parts`."""
    return {reward.key: reward.weight for reward in rewards if not reward.veto}


def is_flat(scores: Sequence[Score], *, each_reward: bool = False) -> bool:
    """Whether all members of a group were rewarded alike, in sum or by each function: they teach nothing."""
    if any(score.total != scores[0].total for score in scores):
        return False
    return not each_reward or all(
        (score.parts, score.is_vetoed) == (scores[0].parts, scores[0].is_vetoed) for score in scores
    )


def _gdpo(scores: Sequence[Sequence[Score]], weights: Mapping[str, float]) -> list[list[float]]:
    """Each reward normalised within its group, summed with weights, normalised over the batch (GDPO, arXiv 2601.05242).

    A vetoed trajectory has no parts that count: it takes the place that its total has among its group's totals.
    """
    sums = [_sum_of_normalised(group, weights) for group in scores]
    flat = [value for group in sums for value in group]
    mean, std = (fmean(flat) if flat else 0.0), _std(flat)
    return [
        [0.0] * len(group) if is_flat(group, each_reward=True) else [(value - mean) / (std + EPSILON) for value in row]
        for group, row in zip(scores, sums, strict=True)
    ]


def _sum_of_normalised(group: Sequence[Score], weights: Mapping[str, float]) -> list[float]:
    by_total = _normalised([score.total for score in group])
    sums = [by_total[place] if score.is_vetoed else 0.0 for place, score in enumerate(group)]
    for name, weight in weights.items():
        places = [place for place, score in enumerate(group) if not score.is_vetoed and name in score.parts]
        values = _normalised([group[place].parts[name] for place in places])
        for place, value in zip(places, values, strict=True):
            sums[place] += weight * value
    return sums


def _normalised(values: Sequence[float]) -> list[float]:
    std = _std(values)
    return [value / (std + EPSILON) for value in _centred(values, "mean")]


def _centred(values: Sequence[float], baseline: Baseline) -> list[float]:
    if _has_no_spread(values):
        return [0.0] * len(values)
    mean = fmean(values)
    # Taking off the mean of the n - 1 others is taking off the mean of all, times n / (n - 1) (arXiv 2402.14740).
    factor = len(values) / (len(values) - 1) if baseline == "leave_one_out" else 1.0
    return [(value - mean) * factor for value in values]


def _std(values: Sequence[float]) -> float:
    """Of a sample: divided by n - 1."""
    return 0.0 if _has_no_spread(values) else stdev(values)


def _has_no_spread(values: Sequence[float]) -> bool:
    return all(value == values[0] for value in values)


def _check_finite(scores: Sequence[Sequence[Score]]) -> None:
    for score in (score for group in scores for score in group):
        if not all(isfinite(value) for value in (score.total, *score.parts.values())):
            raise Internal(
                f"a reward is not a finite number (total {score.total}, parts {dict(score.parts)}), so no advantage "
                "can be had; leave the trajectory out of its group when it is scored"
            )
