"""What one step of the loop learns from, measures and says, on the real small base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from scripted_workers import ScriptedWorker
from test_grpo_loop import Job, of

from engines.adapter import WEIGHTS_FILE
from learners.checkpoint import list_checkpoints
from rollout.types import FinishReason, Group, Score, Trajectory

if TYPE_CHECKING:
    from learners.data.collate import Encoder
    from learners.grpo.batch import Batch
    from learners.grpo.policy import Policy

pytestmark = pytest.mark.timeout(60)
NOT_MEASURED = ("loss", "kl", "entropy", "clip_fraction", "ratio_mean", "mismatch", "mismatch_kl", "grad_norm")


def after_the_first_version(spoil: Callable[[Group], Group]) -> Callable[[Group], Group]:
    return lambda group: spoil(group) if group.version.number > 1 else group


def cut(group: Group) -> Group:
    turns = [replace(trajectory.turns[0], finish=FinishReason.LENGTH) for trajectory in group.trajectories]
    return replace(group, trajectories=tuple(Trajectory((turn,)) for turn in turns))


def flatten(group: Group) -> Group:
    return replace(group, scores=tuple(Score(0.5, {"exact_match": 0.5}) for _ in group.scores))


def trade(group: Group) -> Group:
    """All get the same in sum, by different parts."""
    shares = [place / len(group.scores) for place in range(len(group.scores))]
    return replace(group, scores=tuple(Score(1.0, {"first": share, "second": 1 - share}) for share in shares))


def test_a_step_whose_better_answers_carry_no_loss_changes_no_weight(job: Callable[..., Job], encoder: Encoder) -> None:
    made = job(max_steps=2, max_staleness=0, save_every=1, algorithm={"mask_truncated": True})
    events = made.run(ScriptedWorker(encoder, after_the_first_version(cut)))
    assert [event.data["step"] for event in of(events, "skipped")] == [2]
    before, after = (
        (one.path / WEIGHTS_FILE).read_bytes() for one in list_checkpoints(made.config.job_path / "checkpoints")
    )
    assert before == after


def test_a_step_with_nothing_to_learn_says_no_figure_that_was_not_measured(
    job: Callable[..., Job], encoder: Encoder
) -> None:
    made = job(max_steps=2, max_staleness=0)
    first, second = of(made.run(ScriptedWorker(encoder, after_the_first_version(flatten))), "step")
    assert set(NOT_MEASURED) <= set(first.data)
    assert not set(NOT_MEASURED) & set(second.data)
    result = made.config.job_path / "result.json"
    assert '"kl"' not in result.read_text()


def test_a_step_with_nothing_to_learn_counts_in_a_linear_schedule(job: Callable[..., Job], encoder: Encoder) -> None:
    made = job(max_steps=4, max_staleness=0, lr_schedule="linear", learning_rate=0.004)
    steps = of(
        made.run(ScriptedWorker(encoder, lambda group: flatten(group) if group.version.number == 2 else group)), "step"
    )
    assert [event.data["learning_rate"] for event in steps] == pytest.approx([0.004, 0.003, 0.002, 0.001])


def test_groups_whose_parts_differ_are_not_flat_where_each_reward_is_normalised(
    job: Callable[..., Job], encoder: Encoder
) -> None:
    rewards = [
        {"name": "exact_match", "label": label, "weight": weight} for label, weight in (("first", 1), ("second", 2))
    ]
    made = job(max_steps=1, rewards=rewards, algorithm={"normalise_each_reward": True})
    events = made.run(ScriptedWorker(encoder, trade))
    assert of(events, "step")[0].data["flat"] == 0
    assert not of(events, "flat")
    assert not of(events, "skipped")


def test_what_is_only_measured_keeps_to_the_bound_on_tokens(
    job: Callable[..., Job], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from learners.grpo import policy

    sizes: list[int] = []
    logprobs = policy.Policy.logprobs

    def measured(self: Policy, batch: Batch) -> policy.PolicyOutput:
        sizes.append(batch.inputs["input_ids"].numel())
        return logprobs(self, batch)

    monkeypatch.setattr(policy.Policy, "logprobs", measured)
    events = job(max_steps=2, prompts_per_step=4, micro_batch_tokens=64).run(ScriptedWorker(encoder))
    assert sum(sizes) > 2 * 64
    assert max(sizes) <= 64
    assert of(events, "step")[1].data["kl"] > 0
