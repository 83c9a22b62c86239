"""Properties of the loss that hold for every preset."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import Internal
from learners.grpo.loss import Denominators, LossTerms, add_up, k3, loss
from learners.grpo.presets import DAPO, DR_GRPO, GRPO, PRESETS, LossSpec

LENGTH = 7
SPECS = [
    *PRESETS.values(),
    replace(GRPO, kl_beta=0.1),
    *(
        replace(DAPO, old="learner", correction=correction, correction_level=level, correction_cap=1.1, kl_beta=0.1)
        for correction in ("truncate", "mask")
        for level in ("token", "sequence")
    ),
]
EACH_SPEC = pytest.mark.parametrize("spec", SPECS)


class Step:
    """Random inputs of one optimizer step: `size` rows of up to `LENGTH` tokens."""

    def __init__(self, seed: int, size: int = 6, spread: float = 0.3) -> None:
        random = torch.Generator().manual_seed(seed)

        def noise() -> torch.Tensor:
            return torch.randn(size, LENGTH, generator=random, dtype=torch.float64) * spread

        self.rollout = -torch.rand(size, LENGTH, generator=random, dtype=torch.float64) * 3
        self.old, self.ref = self.rollout + noise(), self.rollout + noise()
        self.new = (self.old + noise()).requires_grad_()
        self.advantages = torch.randn(size, generator=random, dtype=torch.float64)
        lengths = torch.randint(1, LENGTH + 1, (size, 1), generator=random)
        self.mask = torch.arange(LENGTH).unsqueeze(0) < lengths

    @property
    def denominators(self) -> Denominators:
        return Denominators.count([self.mask], LENGTH)

    def terms(self, spec: LossSpec, rows: torch.Tensor | slice = slice(None)) -> LossTerms:
        tensors = (self.new, self.old, self.rollout, self.ref, self.advantages, self.mask)
        return loss(*(tensor[rows] for tensor in tensors), spec, self.denominators)

    def gradient(self, *parts: LossTerms) -> torch.Tensor:
        self.new.grad = None
        for part in parts:
            part.loss.backward()
        assert self.new.grad is not None
        return self.new.grad


def assert_same(one: LossTerms, other: LossTerms) -> None:
    for field in fields(LossTerms):
        torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name), msg=field.name)


@EACH_SPEC
def test_micro_batches_add_up_to_the_step_and_to_its_gradient(spec: LossSpec) -> None:
    step = Step(1)
    whole = step.terms(spec)
    expected = step.gradient(whole).clone()
    parts = [step.terms(spec, rows) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert_same(add_up(parts), add_up([whole]))
    torch.testing.assert_close(step.gradient(*parts), expected)
    assert expected.abs().sum() > 0


@EACH_SPEC
def test_the_order_of_rows_does_not_matter(spec: LossSpec) -> None:
    step = Step(2)
    assert_same(step.terms(spec, torch.tensor([3, 5, 0, 1, 4, 2])), step.terms(spec))


@EACH_SPEC
def test_what_stands_outside_the_mask_has_no_influence(spec: LossSpec) -> None:
    step, other = Step(3), Step(3)
    for tensor in (other.new.data, other.old, other.rollout, other.ref):
        tensor[~other.mask] = float("nan")
    assert_same(step.terms(spec), other.terms(spec))
    gradient = other.gradient(other.terms(spec))
    torch.testing.assert_close(gradient, step.gradient(step.terms(spec)))
    assert not gradient[~step.mask].any()


@EACH_SPEC
def test_advantages_of_zero_give_no_policy_gradient(spec: LossSpec) -> None:
    step = Step(4)
    step.advantages.zero_()
    assert not step.gradient(step.terms(replace(spec, kl_beta=0.0))).any()


@EACH_SPEC
def test_the_policy_loss_is_linear_in_the_size_of_advantages(spec: LossSpec) -> None:
    step = Step(5)
    before = step.terms(spec).policy
    step.advantages *= 3
    torch.testing.assert_close(step.terms(spec).policy, 3 * before)


@EACH_SPEC
def test_the_ratio_is_one_where_nothing_has_changed(spec: LossSpec) -> None:
    step = Step(6)
    step.old = step.rollout = step.new.detach().clone()
    terms = step.terms(spec)
    assert terms.ratio_mean.item() == pytest.approx(1)
    assert terms.weight_mean.item() == pytest.approx(1)
    assert [terms.clip_fraction, terms.mismatch, terms.mismatch_kl, terms.weight_capped] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", PRESETS)
def test_on_policy_every_preset_is_the_plain_policy_gradient(name: str) -> None:
    step = Step(7)
    step.rollout = step.new.detach().clone()
    counts, each = step.denominators, step.mask.sum(1, keepdim=True)
    share = {
        "sequence": 1 / each / counts.num_sequences,
        "tokens": torch.ones(6, 1) / counts.num_tokens,
        "constant": torch.ones(6, 1) / (counts.num_sequences * LENGTH),
    }[PRESETS[name].normaliser]
    if name == "rloo":
        share = torch.ones(6, 1) / counts.num_sequences
    expected = -step.advantages.unsqueeze(1) * share * step.mask
    torch.testing.assert_close(step.gradient(step.terms(PRESETS[name])), expected)


@given(
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.0, 1.0, 1e2, 1e8]),
    spec=st.sampled_from(SPECS),
    empty=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_finite_inputs_never_give_nan(seed: int, spread: float, spec: LossSpec, empty: bool) -> None:
    step = Step(seed, size=3, spread=spread)
    if empty:
        step.mask[seed % 3 :] = False
    terms = step.terms(spec)
    assert all(getattr(terms, field.name).isfinite() for field in fields(LossTerms))
    assert step.gradient(terms).isfinite().all()


def test_a_step_whose_rows_are_all_masked_has_no_loss_and_no_gradient() -> None:
    step = Step(8)
    step.mask.zero_()
    for spec in SPECS:
        terms = step.terms(spec)
        assert terms.loss == 0
        assert not step.gradient(terms).any()


def test_beyond_its_bound_ppo_has_no_gradient_and_cispo_keeps_one() -> None:
    step = Step(9)
    step.advantages = step.advantages.abs()
    step.rollout = step.new.detach() - 3
    bounded = replace(GRPO, clip_high=0.28)
    assert not step.gradient(step.terms(bounded)).any()
    assert step.terms(bounded).clip_fraction.item() == pytest.approx(1)
    assert step.gradient(step.terms(PRESETS["cispo"]))[step.mask].all()


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_weight_over_the_cap_is_cut_or_its_tokens_are_left_out(level: str) -> None:
    step = Step(10)
    step.old = step.rollout + 2.0
    spec = replace(DR_GRPO, old="learner", correction_level=level)
    cut, masked = (step.terms(replace(spec, correction=how)) for how in ("truncate", "mask"))
    assert (cut.weight_mean.item(), masked.weight_mean.item()) == pytest.approx((2.0, 0.0))
    assert cut.weight_capped.item() == masked.weight_capped.item() == pytest.approx(1)
    assert not step.gradient(masked).any()


def test_mismatch_is_the_learner_against_the_rollout() -> None:
    step = Step(11)
    step.old = step.rollout + 0.25
    terms = step.terms(replace(GRPO, old="learner"))
    assert terms.mismatch.item() == pytest.approx(0.25)
    step.new = (step.rollout - 0.5).requires_grad_()
    assert step.terms(GRPO).mismatch.item() == pytest.approx(0.5)


@given(st.floats(-50, 50))
def test_k3_is_never_negative_and_zero_where_nothing_differs(log_ratio: float) -> None:
    assert k3(torch.tensor(log_ratio, dtype=torch.float64)) >= 0
    assert k3(torch.tensor(0.0)) == 0


def test_a_penalty_without_a_reference_is_refused() -> None:
    step, spec = Step(12), replace(GRPO, kl_beta=0.1)
    with pytest.raises(Internal, match="no reference"):
        loss(step.new, None, step.rollout, None, step.advantages, step.mask, spec, step.denominators)


def test_rows_that_are_not_computed_count_in_every_mean_but_that_of_what_is_measured() -> None:
    counts = Denominators.count([torch.ones(2, 3)], LENGTH).with_rest(num_sequences=4, num_tokens=5)
    assert (counts.num_sequences, counts.num_tokens, counts.num_measured, counts.length) == (6, 11, 6, LENGTH)
