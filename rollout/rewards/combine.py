"""From the functions' values to a trajectory's reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rollout.config import RewardConfig
from rollout.types import Score


def combine(configs: Sequence[RewardConfig], values: Mapping[str, float]) -> Score:
    """sum of weight x value over what is no veto; the first veto whose value is 0 or less replaces it.

    `values` by `RewardConfig.key`, one for each of `configs`.
    """
    vetoes = [config.veto_reward for config in configs if config.veto and values[config.key] <= 0]
    if vetoes:
        return Score(vetoes[0], dict(values), is_vetoed=True)
    return Score(sum(config.weight * values[config.key] for config in configs if not config.veto), dict(values))
