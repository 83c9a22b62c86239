"""What one optimizer step does to a policy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from small_policy import load, weights
from toys import Toy

from engines.errors import Refused
from learners.config import GrpoConfig
from learners.data.collate import Encoder
from learners.grpo.batch import Batch, Sample
from learners.grpo.presets import GRPO
from learners.grpo.rows import collate_samples

if TYPE_CHECKING:
    from peft import PeftModel

    from learners.grpo.loss import Denominators
    from learners.grpo.policy import Policy


def settings(**changes: object) -> GrpoConfig:
    required = {"model": "base", "data": "rows.jsonl", "output": "out", "rollout": {"engine": "small"}}
    return GrpoConfig.model_validate(required | changes)


def counts(batches: list[Batch]) -> Denominators:
    from learners.grpo.loss import Denominators

    return Denominators.count((batch.mask for batch in batches), 16)


def test_the_divergence_that_is_watched_is_from_the_base_without_the_adapter(
    policy: Policy, model: PeftModel, samples: list[Sample], encoder: Encoder
) -> None:
    """Of the first micro-batch, before the step."""
    import torch

    from learners.grpo.loss import loss
    from learners.grpo.optimizer import Optimizer
    from learners.grpo.policy import learn

    first, second = (collate_samples(piece, encoder.pad_id) for piece in (samples[:2], samples[2:]))
    with torch.no_grad():
        change = (policy.reference_logprobs(first) - policy.logprobs(first).logprobs)[first.sampled]
    optimizer = Optimizer(model.parameters(), settings(), num_steps=10)
    watched = learn(policy, optimizer, [first, second], GRPO, loss, counts([first, second])).kl
    assert watched == pytest.approx(float((change.exp() - 1 - change).mean()), rel=1e-4)
    assert watched > 0


def test_images_are_looked_at_once_a_step(
    policy: Policy, model: PeftModel, samples: list[Sample], encoder: Encoder, toy: Toy
) -> None:
    """For the pass with the adapter and the one without it."""
    from learners.grpo.loss import loss
    from learners.grpo.optimizer import Optimizer
    from learners.grpo.policy import learn

    looks: list[int] = []
    batch = collate_samples(samples, encoder.pad_id)
    tower = getattr(model.get_base_model().model, toy.vision_tower)
    handle = tower.register_forward_pre_hook(lambda *_: looks.append(1))
    optimizer = Optimizer(model.parameters(), settings(), num_steps=10)
    try:
        learn(policy, optimizer, [batch], replace(GRPO, kl_beta=0.1), loss, counts([batch]))
        assert len(looks) == 1
        learn(policy, optimizer, [batch], replace(GRPO, kl_beta=0.1), loss, counts([batch]))
        assert len(looks) == 2
    finally:
        handle.remove()


def test_a_step_in_pieces_is_the_step_in_one(
    policy: Policy, model: PeftModel, samples: list[Sample], encoder: Encoder
) -> None:
    import torch

    from learners.grpo.loss import loss
    from learners.grpo.optimizer import Optimizer
    from learners.grpo.policy import learn

    before = weights(model)
    results = []
    for batches in ([samples], [samples[:1], samples[1:]]):
        load(model, before)
        optimizer = Optimizer(model.parameters(), settings(max_grad_norm=1e9, learning_rate=1e-3), num_steps=10)
        collated = [collate_samples(batch, encoder.pad_id) for batch in batches]
        results.append(
            (learn(policy, optimizer, collated, replace(GRPO, kl_beta=0.1), loss, counts(collated)), weights(model))
        )
    (whole, after_whole), (pieces, after_pieces) = results
    assert (after_whole - before).abs().max() > 1e-5
    torch.testing.assert_close(after_whole, after_pieces, atol=1e-4, rtol=0)
    for name in ("loss", "kl", "entropy", "mismatch", "ratio_mean", "grad_norm"):
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), rel=1e-3, abs=1e-5)
    assert (whole.num_micro_batches, pieces.num_micro_batches, whole.num_tokens) == (1, 2, 13)
    assert whole.kl > 0
    assert whole.skipped == ""


def test_what_was_rewarded_becomes_more_probable(
    policy: Policy, model: PeftModel, samples: list[Sample], encoder: Encoder
) -> None:
    import torch

    from learners.grpo.loss import loss
    from learners.grpo.optimizer import Optimizer
    from learners.grpo.policy import learn

    batch = collate_samples(samples, encoder.pad_id)
    before = policy.logprobs(batch).logprobs.detach()
    batch = replace(batch, rollout_logprobs=before)
    learn(policy, Optimizer(model.parameters(), settings(), num_steps=10), [batch], GRPO, loss, counts([batch]))
    gained = torch.where(batch.sampled, policy.logprobs(batch).logprobs.detach() - before, 0.0).sum(1)
    assert (gained * batch.advantages > 0).all()


def test_a_step_that_is_not_finite_changes_no_weight(
    policy: Policy, model: PeftModel, samples: list[Sample], encoder: Encoder
) -> None:
    from learners.grpo.loss import loss
    from learners.grpo.optimizer import Optimizer
    from learners.grpo.policy import learn

    good = collate_samples(samples, encoder.pad_id)
    bad = replace(good, advantages=good.advantages * math.nan)
    optimizer = Optimizer(model.parameters(), settings(), num_steps=10)
    before = weights(model)
    assert learn(policy, optimizer, [good, bad], GRPO, loss, counts([good, bad])).skipped == "the loss is nan"
    assert weights(model).equal(before)
    assert learn(policy, optimizer, [good], GRPO, loss, counts([good])).skipped == ""
    assert weights(model).isfinite().all()
    assert not weights(model).equal(before)


def test_the_third_step_in_a_row_that_is_not_finite_ends_the_run() -> None:
    import torch

    from learners.grpo.optimizer import Optimizer

    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = Optimizer([parameter], settings(), num_steps=10)

    def step(gradient: float, loss: float = 0.0) -> str:
        parameter.grad = torch.full((4,), gradient)
        return optimizer.step(loss).skipped

    assert step(math.inf) == "the length of the gradient is inf"
    assert step(1.0, loss=math.inf) == "the loss is inf"
    assert not parameter.any()
    assert step(1.0) == ""
    assert parameter.all()
    assert step(math.nan)
    assert step(math.nan)
    with pytest.raises(Refused, match="the length of the gradient is nan, 3 steps in a row: training diverged"):
        step(math.nan)
    assert parameter.isfinite().all()


def test_a_linear_schedule_ends_at_zero_and_a_gradient_is_cut() -> None:
    import torch

    from learners.grpo.optimizer import Optimizer

    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = Optimizer(
        [parameter], settings(lr_schedule="linear", learning_rate=0.1, max_grad_norm=0.5), num_steps=4
    )
    rates = []
    for _ in range(4):
        parameter.grad = torch.full((4,), 2.0)
        outcome = optimizer.step(0.0)
        assert outcome.grad_norm == pytest.approx(4.0)
        rates.append(outcome.learning_rate)
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert optimizer.learning_rate == 0.0
    moments = optimizer.state_dict().moments["0.exp_avg"]
    assert moments.norm() == pytest.approx(0.5 * (1 - 0.9**4), rel=1e-3)
