"""A learner's policy over the small model of each family, and samples for it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from small_policy import CHUNK, TEMPERATURE
from toys import TOYS, Toy

from engines.profiles import PROFILES
from learners.data.collate import Encoder
from learners.grpo.batch import Sample
from rollout.messages import Message, Picture, Text

if TYPE_CHECKING:
    from peft import PeftModel

    from learners.grpo.policy import Policy


@pytest.fixture(scope="package", params=TOYS)
def toy(request: pytest.FixtureRequest) -> Toy:
    return TOYS[request.param]


@pytest.fixture(scope="package")
def encoder(toy: Toy) -> Encoder:
    from transformers import AutoProcessor

    return Encoder(AutoProcessor.from_pretrained(toy.base, local_files_only=True))


@pytest.fixture(scope="package")
def forbidden(encoder: Encoder, toy: Toy) -> tuple[int, ...]:
    return encoder.ids_of(PROFILES[toy.family].vision_tokens)


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
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
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return Picture(content=buffer.getvalue())
