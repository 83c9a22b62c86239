"""Log-probabilities of the learner against the plain computation, and what one optimizer step does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from toys import TOYS, Toy

from engines.errors import Refused
from engines.profiles import PROFILES
from learners.config import GrpoConfig
from learners.data.collate import Encoder
from learners.grpo.batch import Batch, Sample
from learners.grpo.presets import GRPO
from learners.grpo.rows import collate_samples
from rollout.messages import Message, Picture, Text

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from learners.grpo.loss import Denominators
    from learners.grpo.policy import Policy

TEMPERATURE = 0.7
CHUNK = 3


def counts(batches: list[Batch]) -> Denominators:
    from learners.grpo.loss import Denominators

    return Denominators.count((batch.mask for batch in batches), 16)


@pytest.fixture(scope="module", params=TOYS)
def toy(request: pytest.FixtureRequest) -> Toy:
    return TOYS[request.param]


@pytest.fixture(scope="module")
def encoder(toy: Toy) -> Encoder:
    from transformers import AutoProcessor

    return Encoder(AutoProcessor.from_pretrained(toy.base, local_files_only=True))


@pytest.fixture(scope="module")
def forbidden(encoder: Encoder, toy: Toy) -> tuple[int, ...]:
    return encoder.ids_of(PROFILES[toy.family].vision_tokens)


@pytest.fixture(scope="module")
def base(toy: Toy) -> PeftModel:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(toy.base, dtype=torch.float32, local_files_only=True)
    profile = PROFILES[toy.family]
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(profile.peft_targets)))


@pytest.fixture
def model(base: PeftModel) -> PeftModel:
    """With an adapter that changes something, the same for each test."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for name, parameter in base.named_parameters():
        if parameter.requires_grad:
            parameter.grad = None
            parameter.data = torch.randn(parameter.shape, generator=generator) * (0.1 if "lora_B" in name else 0.05)
    return base


@pytest.fixture
def policy(model: PeftModel, forbidden: tuple[int, ...]) -> Policy:
    from learners.grpo.policy import Policy

    return Policy(model, forbidden, TEMPERATURE, CHUNK)


@pytest.fixture(scope="module")
def samples(encoder: Encoder) -> list[Sample]:
    def sample(question: str, *colors: str, ids: tuple[int, ...], advantage: float) -> Sample:
        parts = (*(picture(color) for color in colors), Text(question))
        prompt = encoder.encode_prompt((Message("user", parts),))
        return Sample("1", prompt, ids, (-1.5,) * len(ids), advantage)

    return [
        sample("what color is the shape?", "red", ids=(5, 9, 11, 308), advantage=1.0),
        sample("is it blue?", ids=(40, 308), advantage=-1.0),
        sample("which one is the larger one, and why?", "red", "blue", ids=(7, 8, 60, 61, 62, 63, 308), advantage=0.5),
    ]


def picture(color: str) -> Picture:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return Picture(content=buffer.getvalue())


def settings(**changes: object) -> GrpoConfig:
    required = {"model": "base", "data": "rows.jsonl", "output": "out", "rollout": {"engine": "small"}}
    return GrpoConfig.model_validate(required | changes)


def test_log_probabilities_are_those_of_the_whole_logits(
    policy: Policy, model: PeftModel, forbidden: tuple[int, ...], samples: list[Sample], encoder: Encoder
) -> None:
    """Also sequences of other lengths beside them, and padding, change nothing."""
    import torch

    output = policy.logprobs(collate_samples(samples, encoder.pad_id))
    for row, sample in enumerate(samples):
        alone = collate_samples([sample], encoder.pad_id)
        with torch.no_grad():
            logits = model(**alone.inputs, use_cache=False).logits[0, -len(sample.token_ids) - 1 : -1] / TEMPERATURE
        logits[:, list(forbidden)] = -math.inf
        expected = logits.log_softmax(-1)
        num = len(sample.token_ids)
        plain = expected.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(output.logprobs[row, :num].detach(), plain, atol=1e-5, rtol=0)
        entropy = torch.distributions.Categorical(logits=logits.masked_fill(logits.isinf(), -1e9)).entropy()
        torch.testing.assert_close(output.entropy[row, :num], entropy, atol=1e-5, rtol=0)
        assert not output.logprobs[row, num:].any()


@pytest.fixture
def groups(samples: list[Sample]) -> list[Sample]:
    """Other answers to the same prompts, so long that they do not all fit into one row."""
    others = [(9, 5, 308), (61,), tuple(range(40, 60)), tuple(range(60, 90))]
    return [
        replace(sample, token_ids=ids, logprobs=(-1.5,) * len(ids), advantage=advantage)
        for sample in samples
        for ids, advantage in zip((sample.token_ids, *others), (1.0, -1.0, 0.5, -0.5, 2.0), strict=True)
    ]


def test_answers_that_share_a_prompt_are_what_each_is_alone(
    policy: Policy, model: PeftModel, groups: list[Sample], encoder: Encoder
) -> None:
    """Their log-probabilities, and the gradient of all of them."""
    import torch

    batch = collate_samples(groups, encoder.pad_id)
    together = policy.logprobs(batch)
    (together.logprobs * batch.advantages[:, None]).sum().backward()
    shared = gradients(model)
    model.zero_grad()
    for row, sample in enumerate(groups):
        alone = policy.logprobs(collate_samples([sample], encoder.pad_id))
        num = len(sample.token_ids)
        torch.testing.assert_close(together.logprobs[row, :num], alone.logprobs[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.entropy[row, :num], alone.entropy[0], atol=1e-5, rtol=0)
        (alone.logprobs * sample.advantage).sum().backward()
    assert shared.abs().max() > 0
    torch.testing.assert_close(shared, gradients(model), atol=1e-4, rtol=1e-4)


def test_an_image_is_computed_once_for_answers_in_one_row(
    policy: Policy, model: PeftModel, samples: list[Sample], encoder: Encoder, toy: Toy
) -> None:
    seen: list[int] = []
    tower = getattr(model.get_base_model().model, toy.vision_tower)

    def count_images(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(len(kwargs["grid_thw"] if "grid_thw" in kwargs else kwargs["pixel_values"]))

    handle = tower.register_forward_pre_hook(count_images, with_kwargs=True)
    try:
        policy.logprobs(collate_samples([samples[0]] * 4, encoder.pad_id))
    finally:
        handle.remove()
    assert seen == [1]


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


def test_the_gradient_is_that_of_the_whole_logits(
    policy: Policy, model: PeftModel, forbidden: tuple[int, ...], samples: list[Sample], encoder: Encoder
) -> None:
    import torch

    batch = collate_samples(samples, encoder.pad_id)
    policy.logprobs(batch).logprobs.sum().backward()
    chunked = gradients(model)
    model.zero_grad()
    logits = model(**batch.inputs, use_cache=False).logits / TEMPERATURE
    distribution = logits.index_fill(2, torch.tensor(forbidden), -math.inf).log_softmax(-1)
    rows = torch.arange(len(samples))[:, None].expand_as(batch.positions)
    distribution[rows, batch.positions, batch.token_ids][batch.sampled].sum().backward()
    assert chunked.abs().max() > 0
    torch.testing.assert_close(chunked, gradients(model), atol=1e-4, rtol=1e-4)


def test_no_more_logits_than_one_chunk_exist_at_once(
    policy: Policy, model: PeftModel, samples: list[Sample], encoder: Encoder
) -> None:
    rows: list[int] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, _inputs, logits: rows.append(logits.shape[:-1].numel()))
    try:
        policy.logprobs(collate_samples(samples, encoder.pad_id)).logprobs.sum().backward()
    finally:
        handle.remove()
    num_tokens = sum(len(sample.token_ids) for sample in samples)
    assert max(rows) <= CHUNK
    assert sum(rows) == 2 * num_tokens  # once more in the backward pass: none of them was kept


def test_the_reference_is_the_base_without_the_adapter(
    policy: Policy, model: PeftModel, samples: list[Sample], encoder: Encoder
) -> None:
    import torch

    batch = collate_samples(samples, encoder.pad_id)
    reference = policy.reference_logprobs(batch)
    adapted = policy.logprobs(batch).logprobs.detach()
    assert (reference - adapted).abs().max() > 0.01
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.zeros_like(parameter)
    torch.testing.assert_close(policy.logprobs(batch).logprobs.detach(), reference)
    assert not reference.requires_grad


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


def trained(model: PeftModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def weights(model: PeftModel) -> torch.Tensor:
    import torch

    return torch.cat([parameter.detach().flatten() for parameter in trained(model)])


def load(model: PeftModel, values: torch.Tensor) -> None:
    parameters = trained(model)
    pieces = values.split([parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.data = piece.view_as(parameter).clone()


def gradients(model: PeftModel) -> torch.Tensor:
    import torch

    return torch.cat([parameter.grad.flatten() for parameter in trained(model)])
