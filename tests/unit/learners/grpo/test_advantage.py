"""Advantages relative to a group."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite, nan

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engines.errors import Internal
from learners.grpo.advantage import advantages, is_flat, weights_of
from learners.grpo.presets import GRPO, RLOO, LossSpec
from rollout.config import RewardConfig
from rollout.types import Score

NONE = replace(GRPO, scale="none")
BATCH = replace(GRPO, scale="batch")
GDPO = replace(GRPO, normalise_each_reward=True)
SPECS = [GRPO, NONE, BATCH, RLOO, replace(RLOO, scale="group"), GDPO]
REWARDS = st.lists(st.lists(st.integers(-8, 8).map(lambda n: n / 8), min_size=1, max_size=6), min_size=1, max_size=4)


def scored(groups: list[list[float]]) -> list[list[Score]]:
    return [[Score(value, {"r": value}) for value in group] for group in groups]


def of(groups: list[list[float]], spec: LossSpec) -> list[list[float]]:
    return advantages(scored(groups), {"r": 1.0}, spec)


@given(REWARDS, st.sampled_from(SPECS))
def test_every_score_gets_one_finite_number(groups: list[list[float]], spec: LossSpec) -> None:
    result = of(groups, spec)
    assert [len(group) for group in result] == [len(group) for group in groups]
    assert all(isfinite(value) for group in result for value in group)


@given(REWARDS, st.floats(-3, 3), st.integers(1, 9), st.sampled_from(SPECS))
def test_a_group_rewarded_alike_gets_exact_zeros(
    others: list[list[float]], reward: float, size: int, spec: LossSpec
) -> None:
    assert of([*others, [reward] * size], spec)[-1] == [0.0] * size


@given(REWARDS, st.integers(-4, 4), st.sampled_from(SPECS))
def test_a_shift_of_all_rewards_changes_nothing(groups: list[list[float]], shift: int, spec: LossSpec) -> None:
    shifted = of([[value + shift for value in group] for group in groups], spec)
    for before, after in zip(of(groups, spec), shifted, strict=True):
        assert after == pytest.approx(before, abs=1e-9)


@given(REWARDS, st.sampled_from([NONE, RLOO]))
def test_without_scaling_advantages_grow_with_the_rewards(groups: list[list[float]], spec: LossSpec) -> None:
    doubled = of([[2 * value for value in group] for group in groups], spec)
    for before, after in zip(of(groups, spec), doubled, strict=True):
        assert after == pytest.approx([2 * value for value in before], abs=1e-9)


@given(REWARDS, st.sampled_from([GRPO, BATCH]))
def test_with_scaling_advantages_keep_their_size(groups: list[list[float]], spec: LossSpec) -> None:
    doubled = of([[2 * value for value in group] for group in groups], spec)
    for before, after in zip(of(groups, spec), doubled, strict=True):
        assert after == pytest.approx(before, rel=2e-3, abs=1e-9)


@given(REWARDS, st.sampled_from([GRPO, NONE, BATCH, RLOO]))
def test_the_advantages_of_a_group_sum_to_zero(groups: list[list[float]], spec: LossSpec) -> None:
    for group in of(groups, spec):
        assert sum(group) == pytest.approx(0, abs=1e-9)


@given(REWARDS, st.randoms(use_true_random=False), st.sampled_from(SPECS))
def test_the_order_of_groups_does_not_matter(groups: list[list[float]], random, spec: LossSpec) -> None:
    order = list(range(len(groups)))
    random.shuffle(order)
    before, after = of(groups, spec), of([groups[place] for place in order], spec)
    for place, group in zip(order, after, strict=True):
        assert group == pytest.approx(before[place], abs=1e-9)


@given(st.lists(st.integers(-8, 8).map(float), min_size=2, max_size=6))
def test_leave_one_out_takes_off_the_mean_of_the_others(rewards: list[float]) -> None:
    expected = [value - (sum(rewards) - value) / (len(rewards) - 1) for value in rewards]
    assert of([rewards], RLOO)[0] == pytest.approx(expected)


@given(st.floats(0.1, 100))
def test_with_each_reward_normalised_its_unit_does_not_matter(unit: float) -> None:
    assume(unit != 1)

    def by(unit: float) -> list[list[float]]:
        pairs = [(0.0, 3.0), (1.0, 1.0), (1.0, 2.0), (0.0, 2.0)]
        group = [Score(right + unit * size, {"right": right, "size": unit * size}) for right, size in pairs]
        return advantages([group], {"right": 1.0, "size": -0.5}, GDPO)

    assert by(unit)[0] == pytest.approx(by(1.0)[0], rel=5e-3, abs=5e-3)


def test_the_weight_of_a_normalised_reward_is_its_share() -> None:
    group = [Score(0.0, {"a": 1.0, "b": 0.0}), Score(0.0, {"a": 0.0, "b": 1.0})]
    assert advantages([group], {"a": 2.0, "b": 1.0}, GDPO)[0][0] > 0
    assert advantages([group], {"a": 1.0, "b": 2.0}, GDPO)[0][0] < 0
    assert advantages([group], {"a": 0.0, "b": 0.0}, GDPO) == [[0.0, 0.0]]


@pytest.mark.parametrize("spec", SPECS)
def test_a_vetoed_trajectory_counts_with_the_vetos_total_not_with_its_parts(spec: LossSpec) -> None:
    def with_part(value: float) -> list[list[float]]:
        vetoed = Score(-1.0, {"r": value}, is_vetoed=True)
        return advantages([[Score(1.0, {"r": 1.0}), Score(0.0, {"r": 0.0}), vetoed]], {"r": 1.0}, spec)

    assert with_part(1.0) == with_part(0.0)
    assert with_part(1.0)[0][2] == min(with_part(1.0)[0]) < 0


def test_a_reward_that_some_members_lack_is_normalised_among_the_others() -> None:
    group = [Score(1.0, {"a": 1.0}), Score(0.0, {"a": 0.0}), Score(0.0, {})]
    first, second, third = advantages([group], {"a": 1.0}, GDPO)[0]
    assert first == pytest.approx(-second)
    assert third == 0.0


def test_a_group_is_flat_in_sum_or_by_each_reward() -> None:
    group = [Score(1.0, {"a": 1.0, "b": 0.0}), Score(1.0, {"a": 0.0, "b": 1.0})]
    assert is_flat(group)
    assert not is_flat(group, each_reward=True)
    assert is_flat(group[:1], each_reward=True)
    assert not is_flat([*group, Score(0.0, {"a": 0.0, "b": 0.0})])


@pytest.mark.parametrize("score", [Score(nan, {}), Score(0.0, {"r": float("inf")})])
def test_a_reward_that_is_no_number_is_refused(score: Score) -> None:
    with pytest.raises(Internal, match="not a finite number"):
        advantages([[Score(0.0, {}), score]], {"r": 1.0}, GRPO)


def test_a_veto_has_no_weight() -> None:
    rewards = [RewardConfig(name="anls", label="a", weight=0.5), RewardConfig(name="regex", veto=True)]
    assert weights_of(rewards) == {"a": 0.5}
