"""The numbers of a step's event."""

from __future__ import annotations

import pytest

from engines.types import VersionName
from learners.grpo.report import TimeFigures, bound_by, look_at
from rollout.types import FinishReason, Group, Prompt, Score, Trajectory, Turn

PROMPT = Prompt("1", ())


def trajectory(num_tokens: int, finish: FinishReason = FinishReason.STOP) -> Trajectory:
    return Trajectory((Turn((), (1,), (2,) * num_tokens, (-0.5,) * num_tokens, "x", finish),))


def group(version: int, *rewards: float, num_lost: int = 0) -> Group:
    trajectories = tuple(trajectory(place + 1) for place in range(len(rewards)))
    scores = tuple(Score(reward, {"exact_match": reward}) for reward in rewards)
    return Group(PROMPT, VersionName("grpo.1/step", version), trajectories, scores, num_lost)


def test_figures_are_of_trajectories_not_of_groups() -> None:
    figures = look_at([group(3, 1.0), group(1, 0.0, 0.0, 0.0, num_lost=2)], learner_version=3, each_reward=False)
    assert figures.reward == 0.25
    assert figures.parts == {"exact_match": 0.25}
    assert (figures.staleness_mean, figures.staleness_max) == (1.5, 2)
    assert (figures.flat, figures.lost, figures.num_samples) == (2, 2, 4)


def test_what_was_cut_off_is_counted() -> None:
    cut = Group(
        PROMPT,
        VersionName("grpo.1/step", 1),
        (trajectory(2, FinishReason.LENGTH), trajectory(2)),
        (Score(0.0, {}), Score(1.0, {})),
    )
    assert look_at([cut], learner_version=1, each_reward=False).truncated == 0.5


@pytest.mark.parametrize(("each_reward", "num_flat"), [(False, 1), (True, 0)])
def test_one_sum_of_different_parts_is_flat_only_where_sums_are_compared(each_reward: bool, num_flat: int) -> None:
    scores = (Score(1.0, {"exact_match": 1.0, "length": 0.0}), Score(1.0, {"exact_match": 0.0, "length": 1.0}))
    mixed = Group(PROMPT, VersionName("grpo.1/step", 1), (trajectory(1), trajectory(2)), scores)
    assert look_at([mixed], learner_version=1, each_reward=each_reward).flat == num_flat


@pytest.mark.parametrize(
    ("waited_s", "engine_idle_s", "word"),
    [(5.0, 0.0, "bound by rollout"), (0.0, 5.0, "bound by learner"), (0.1, 0.1, "balanced")],
)
def test_one_line_says_what_the_run_is_bound_by(waited_s: float, engine_idle_s: float, word: str) -> None:
    assert bound_by([TimeFigures(10.0, waited_s, engine_idle_s)]).startswith(word)
