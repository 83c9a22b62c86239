"""Log-probabilities of the learner, and their gradient, against the plain computation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from small_policy import CHUNK, TEMPERATURE, gradients
from toys import Toy

from learners.data.collate import Encoder
from learners.grpo.batch import Sample
from learners.grpo.rows import collate_samples

if TYPE_CHECKING:
    from peft import PeftModel

    from learners.grpo.policy import Policy


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
