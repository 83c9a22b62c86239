"""A toy from nothing, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from learners.toy.families import ToyFamily

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin


def build_model(family: ToyFamily, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """Random weights in float32, the same for the same seed."""
    import torch

    torch.manual_seed(seed)
    return family.build_model(tokenizer)


def save(model: PreTrainedModel, processor: ProcessorMixin, directory: Path) -> None:
    """Writes what `AutoModelForImageTextToText`, `AutoProcessor` and an engine load; weights in bfloat16."""
    import torch
    from transformers import GenerationConfig

    end, pad = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad)
    directory.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(directory)
    processor.save_pretrained(directory)
