"""A random adapter on every language linear, loud enough that its effect can be told from rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import BadRequest

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

RANK = 8
SEED = 0
LEAST_EFFECT = 0.1
"""Mean absolute change of log-probability, in nats: five times what a quantized engine's rounding may be."""
FIRST_SCALE, GROWTH, MAX_TRIES = 0.02, 2.0, 10


def put_adapter(model: PreTrainedModel, modules: Sequence[str]) -> PeftModel:
    """`modules` are named in full: a last name alone may be one of the vision tower's too."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(modules), bias="none", task_type="CAUSAL_LM")
    return get_peft_model(model, config).eval()


def grow(model: PeftModel, effect: Callable[[], float]) -> None:
    """Sets the weights that begin at zero, larger until `effect()` is `LEAST_EFFECT`. Raises `BadRequest` if never."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    zeros = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    drawn = [torch.randn(parameter.shape, generator=generator) for parameter in zeros]
    scale = FIRST_SCALE
    for _ in range(MAX_TRIES):
        with torch.no_grad():
            for parameter, values in zip(zeros, drawn, strict=True):
                parameter.copy_(scale * values)
        if effect() >= LEAST_EFFECT:
            return
        scale *= GROWTH
    raise BadRequest("no adapter on the language linears changes the answers: the model does not use them")


def save(model: PeftModel, folder: Path) -> None:
    from learners.lora import save_adapter

    save_adapter(model, folder)
