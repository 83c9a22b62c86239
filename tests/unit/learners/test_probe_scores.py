"""Answers that are scored together have the log-probabilities that each has alone."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from toys import TOYS, Toy

from learners import scorer
from learners.data.collate import Encoded, Encoder
from learners.data.examples import Example, Message, Picture, Text
from learners.scorer import Scorer

if TYPE_CHECKING:
    from peft import PeftModel

ASKED = (
    ("is it?", "red", 64, "yes"),
    ("what color is the shape?", "blue", 64, "blue"),
    ("hello", "", 0, "no"),
    ("what shape is in this picture?", "green", 128, "rectangle"),
)
"""A question, its picture's color and side (none: 0), and an answer."""


@pytest.fixture(scope="module", params=TOYS)
def toy(request: pytest.FixtureRequest) -> Toy:
    return TOYS[request.param]


@pytest.fixture(scope="module")
def encoder(toy: Toy) -> Encoder:
    from transformers import AutoProcessor

    return Encoder(AutoProcessor.from_pretrained(toy.base, local_files_only=True))


@pytest.fixture(scope="module")
def model(toy: Toy) -> PeftModel:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(toy.base, dtype=torch.float32, local_files_only=True)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["self_attn.q_proj"]))


@pytest.fixture(scope="module")
def answers(encoder: Encoder) -> list[Encoded]:
    return [encoder.encode_whole(example(*asked)) for asked in ASKED]


def example(question: str, color: str, side: int, answer: str) -> Example:
    pictures = (picture(color, side),) if side else ()
    return Example("1", 1, (Message("user", (*pictures, Text(question))),), answer)


def picture(color: str, side: int) -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, "PNG")
    return Picture(content=buffer.getvalue())


def test_answers_of_other_lengths_are_scored_together_as_each_is_alone(
    model: PeftModel, encoder: Encoder, answers: list[Encoded]
) -> None:
    together = Scorer(model, answers, encoder.pad_id).score()
    assert [len(scores) for scores in together] == [len(encoded.answer_ids) for encoded in answers]
    for encoded, scores in zip(answers, together, strict=True):
        (alone,) = Scorer(model, [encoded], encoder.pad_id).score()
        assert scores == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == len(answers)


def test_the_end_of_the_turn_is_scored_too(model: PeftModel, encoder: Encoder, answers: list[Encoded]) -> None:
    """As an engine does, also where nothing behind the answer has a label."""
    import torch

    (encoded,) = answers[:1]
    (scores,) = Scorer(model, [encoded], encoder.pad_id).score()
    ids = torch.tensor([[*encoded.prompt_ids, *encoded.answer_ids]])
    types = torch.tensor([[*encoded.types, *[0] * len(encoded.answer_ids)]])
    with torch.inference_mode():
        logits = model(input_ids=ids, mm_token_type_ids=types, **encoded.vision).logits[0]
    expected = logits.log_softmax(-1)[range(-len(scores) - 1, -1), encoded.answer_ids]
    assert scores == pytest.approx(expected.tolist(), abs=1e-5)


def test_what_is_remembered_of_images_does_not_hide_that_the_adapter_changed(
    model: PeftModel, encoder: Encoder, answers: list[Encoded]
) -> None:
    import torch

    kept = Scorer(model, answers, encoder.pad_id)
    before = kept.score()
    changed = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    for parameter in changed:
        parameter.data = torch.full_like(parameter, 0.5)
    try:
        after, anew = kept.score(), Scorer(model, answers, encoder.pad_id).score()
    finally:
        for parameter in changed:
            parameter.data = torch.zeros_like(parameter)
    assert after == anew
    moved = [abs(new - old) for pair in zip(after, before, strict=True) for new, old in zip(*pair, strict=True)]
    assert max(moved) > 0.01


def test_no_more_tokens_than_allowed_are_computed_at_once_and_images_are_looked_at_once(
    model: PeftModel, encoder: Encoder, answers: list[Encoded], toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    looks: list[int] = []
    together = Scorer(model, answers, encoder.pad_id).score()
    longest = max(encoded.num_tokens for encoded in answers)
    monkeypatch.setattr(scorer, "MAX_TOKENS", 2 * longest)
    backbone = model.get_base_model().model
    handles = (
        backbone.language_model.register_forward_pre_hook(
            lambda _module, _args, kwargs: sizes.append(kwargs["inputs_embeds"].shape[0]), with_kwargs=True
        ),
        getattr(backbone, toy.vision_tower).register_forward_pre_hook(lambda *_: looks.append(1)),
    )
    try:
        pieces = Scorer(model, answers, encoder.pad_id)
        first, second = pieces.score(), pieces.score()
    finally:
        for handle in handles:
            handle.remove()
    assert sizes == [2, 2, 2, 2]
    assert len(looks) == 2
    assert first == second
    for scores, expected in zip(first, together, strict=True):
        assert scores == pytest.approx(expected, abs=1e-5)
