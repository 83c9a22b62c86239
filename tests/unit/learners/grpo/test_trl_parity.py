"""Every preset's advantages, loss and gradient are those of TRL's trainers on the same inputs.

TRL's own code runs from the rewards to the loss; only what samples, scores and computes log-probabilities is given.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from learners.grpo.advantage import advantages
from learners.grpo.loss import Denominators, LossTerms, loss
from learners.grpo.presets import CISPO, DAPO, DR_GRPO, GRPO, GSPO, RLOO, LossSpec
from rollout.types import Score

GROUPS, SIZE, LENGTH = 4, 3, 6
WEIGHTS = {"right": 1.0, "short": -0.4}
LOSS_TYPES = {GRPO: "grpo", DR_GRPO: "dr_grpo", DAPO: "dapo", GSPO: "grpo", CISPO: "cispo", RLOO: "rloo"}
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


class Inputs:
    """One step: rewards by function (rows, 2), with one group rewarded alike, and log-probabilities (rows, LENGTH)."""

    def __init__(self, seed: int, spread: float = 0.3) -> None:
        random = torch.Generator().manual_seed(seed)
        rows = GROUPS * SIZE

        def noise() -> torch.Tensor:
            return torch.randn(rows, LENGTH, generator=random, dtype=torch.float64) * spread

        self.parts = torch.rand(rows, 2, generator=random, dtype=torch.float64)
        self.parts[:SIZE] = self.parts[0]
        self.lengths = torch.randint(1, LENGTH + 1, (rows,), generator=random)
        self.lengths[0] = LENGTH
        self.mask = torch.arange(LENGTH).unsqueeze(0) < self.lengths.unsqueeze(1)
        self.rollout = -torch.rand(rows, LENGTH, generator=random, dtype=torch.float64) * 3 - 0.1
        self.old, self.ref = self.rollout + noise(), self.rollout + noise()
        self.new = (self.old + noise()).requires_grad_()

    def scores(self) -> list[list[Score]]:
        weights = torch.tensor(list(WEIGHTS.values()), dtype=torch.float64)
        rows = [
            Score(float(row @ weights), dict(zip(WEIGHTS, row.tolist(), strict=True))) for row in self.parts.unbind()
        ]
        return [rows[start : start + SIZE] for start in range(0, len(rows), SIZE)]

    def gradient(self, value: torch.Tensor) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(value, self.new, retain_graph=True)
        return gradient


def ours(inputs: Inputs, spec: LossSpec) -> tuple[torch.Tensor, LossTerms]:
    flat = [value for group in advantages(inputs.scores(), WEIGHTS, spec) for value in group]
    wanted = torch.tensor(flat, dtype=torch.float64)
    behaviour = inputs.old if spec.old == "rollout" else inputs.rollout
    counts = Denominators.count([inputs.mask], LENGTH)
    return wanted, loss(inputs.new, inputs.old, behaviour, inputs.ref, wanted, inputs.mask, spec, counts)


@pytest.fixture(scope="session")
def trl() -> Any:
    import trl

    return trl


class Model:
    training = True
    is_gradient_checkpointing = False


def trainer_of(trl: Any, inputs: Inputs, spec: LossSpec) -> Any:
    """One of TRL's trainers that was not constructed, with the attributes that its scoring and its loss read."""
    kind = trl.RLOOTrainer if spec.ratio == "product" else trl.GRPOTrainer
    trainer = kind.__new__(kind)
    _give_batch(trainer, inputs)
    _give_choices(trainer, spec)
    trainer.accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        process_index=0,
        num_processes=1,
        is_main_process=True,
        gather=lambda tensor: tensor,
        gather_for_metrics=lambda tensor: tensor,
        reduce=lambda tensor, reduction: tensor,
    )
    trainer.args = SimpleNamespace(
        per_device_train_batch_size=GROUPS * SIZE,
        gradient_accumulation_steps=1,
        gradient_checkpointing_kwargs=None,
        steps_per_generation=1,
        report_to=[],
        delta=None,
        use_bias_correction_kl=trl.GRPOConfig.use_bias_correction_kl,
    )
    # Two iterations over a batch make TRL keep the log-probabilities of before the step.
    trainer.num_iterations, trainer.current_gradient_accumulation_steps = 2, 1
    return trainer


def _give_batch(trainer: Any, inputs: Inputs) -> None:
    answers = [[5] * length for length in inputs.lengths.tolist()]
    sampled = [row[:length].tolist() for row, length in zip(inputs.rollout, inputs.lengths.tolist(), strict=True)]
    prompts = [[1, 2]] * len(answers)
    is_rloo = type(trainer).__name__ == "RLOOTrainer"
    texts = ["x"] * len(answers)
    batch = (prompts, answers, texts) if is_rloo else (prompts, answers, None, texts, sampled, {}, None, None)
    trainer._generate = lambda prompts: batch
    trainer._calculate_rewards = lambda *_: inputs.parts
    trainer.model, trainer.ref_model, trainer.present = Model(), Model(), Model()
    by_model = {trainer.model: inputs.old, trainer.ref_model: inputs.ref, trainer.present: inputs.new}

    def logprobs(model: Model, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        return by_model[model], torch.zeros_like(inputs.old), None

    trainer._get_per_token_logps_and_entropies = logprobs


def _give_choices(trainer: Any, spec: LossSpec) -> None:
    trainer.loss_type = LOSS_TYPES[_preset_of(spec)]
    trainer.importance_sampling_level = spec.ratio
    trainer.epsilon_low = spec.clip_low
    trainer.epsilon_high = 1 + spec.clip_high if spec.clip == "cispo" else spec.clip_high
    trainer.scale_rewards, trainer.beta = spec.scale, spec.kl_beta
    trainer.multi_objective_aggregation = "normalize_then_sum" if spec.normalise_each_reward else "sum_then_normalize"
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = spec.old == "learner"
    trainer.vllm_importance_sampling_mode = f"{spec.correction_level}_{spec.correction}"
    trainer.vllm_importance_sampling_clip_min, trainer.vllm_importance_sampling_clip_max = None, spec.correction_cap
    trainer.num_generations, trainer.max_completion_length = SIZE, LENGTH
    trainer.reward_weights = torch.tensor(list(WEIGHTS.values()), dtype=torch.float64)
    trainer.reward_funcs = trainer.reward_func_names = list(WEIGHTS)
    trainer.environment_factories = trainer.environments = trainer.tools = trainer.off_policy_mask_threshold = None
    trainer.reward_clip_range = trainer.pad_to_multiple_of = None
    trainer.normalize_advantages = trainer.mask_truncated_completions = trainer.log_multimodal = False
    trainer.aux_loss_enabled = trainer._entropy_bonus_enabled = False
    trainer.top_entropy_quantile = 1.0
    trainer._tokenizer = SimpleNamespace(pad_token_id=0)
    trainer.state = SimpleNamespace(num_input_tokens_seen=0)
    trainer._metrics = {"train": defaultdict(list)}
    trainer._logs = {name: [] for name in ("prompt", "completion", "advantages")}
    trainer._logs |= {"rewards": defaultdict(list), "extra": defaultdict(list)}
    trainer._pending_extra_logs, trainer._pending_metrics = {}, {}


def _preset_of(spec: LossSpec) -> LossSpec:
    """The preset of this ratio, normaliser and clip, from which the other choices may differ."""
    shape = (spec.ratio, spec.normaliser, spec.clip)
    return next(preset for preset in LOSS_TYPES if (preset.ratio, preset.normaliser, preset.clip) == shape)


def theirs(trl: Any, inputs: Inputs, spec: LossSpec) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """TRL's advantages, its loss, and the trainer with the metrics that it wrote."""
    trainer = trainer_of(trl, inputs, spec)
    batch = trainer._generate_and_score_completions([{"prompt": "x"}] * (GROUPS * SIZE))
    trainer.model = trainer.present
    return batch["advantages"], trainer._compute_loss(trainer.model, batch), trainer


def assert_equal(trl: Any, inputs: Inputs, spec: LossSpec) -> LossTerms:
    their_advantages, their_loss, _ = theirs(trl, inputs, spec)
    our_advantages, terms = ours(inputs, spec)
    torch.testing.assert_close(our_advantages, their_advantages, **TOLERANCE)
    torch.testing.assert_close(terms.loss, their_loss, **TOLERANCE)
    torch.testing.assert_close(inputs.gradient(terms.loss), inputs.gradient(their_loss), **TOLERANCE)
    assert inputs.gradient(terms.loss).abs().max() > 1e-3
    return terms


SAMPLED_WITH = pytest.mark.parametrize("preset", [GRPO, DR_GRPO, DAPO, GSPO, CISPO])


@pytest.mark.parametrize("preset", LOSS_TYPES, ids=["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"])
@pytest.mark.parametrize("seed", range(3))
def test_a_preset_is_trls(trl: Any, preset: LossSpec, seed: int) -> None:
    assert_equal(trl, Inputs(seed), preset)


@SAMPLED_WITH
def test_the_divergence_from_the_reference_is_trls(trl: Any, preset: LossSpec) -> None:
    terms = assert_equal(trl, Inputs(3), replace(preset, kl_beta=0.3))
    assert terms.kl > 0.01


@SAMPLED_WITH
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("how", ["truncate", "mask"])
def test_the_correction_for_what_sampled_is_trls(trl: Any, preset: LossSpec, level: Any, how: Any) -> None:
    spec = replace(preset, old="learner", correction=how, correction_level=level, correction_cap=1.2, kl_beta=0.1)
    terms = assert_equal(trl, Inputs(4), spec)
    assert 0 < terms.weight_capped < 1


@pytest.mark.parametrize("preset", [GRPO, DAPO, GSPO])
@pytest.mark.parametrize("bounds", [(0.1, 0.4), (0.0, 0.05), (0.5, 0.0)])
def test_bounds_that_are_not_alike_are_trls(trl: Any, preset: LossSpec, bounds: tuple[float, float]) -> None:
    inputs, spec = Inputs(5), replace(preset, clip_low=bounds[0], clip_high=bounds[1])
    terms = assert_equal(trl, inputs, spec)
    assert terms.clip_fraction > 0
    if spec.ratio == "token":
        _, _, trainer = theirs(trl, inputs, spec)
        assert trainer._metrics["train"]["clip_ratio/region_mean"] == pytest.approx([terms.clip_fraction.item()])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("preset", [GRPO, DR_GRPO, DAPO])
def test_the_scale_of_advantages_is_trls(trl: Any, preset: LossSpec, scale: Any) -> None:
    assert_equal(trl, Inputs(6), replace(preset, scale=scale))


@pytest.mark.parametrize("seed", range(3))
def test_rewards_normalised_each_are_trls(trl: Any, seed: int) -> None:
    assert_equal(trl, Inputs(seed), replace(GRPO, normalise_each_reward=True))
