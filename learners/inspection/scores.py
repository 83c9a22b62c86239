"""Log-probabilities of fixed answers by one plain forward pass each, of any vision-language model of transformers.

Nothing of the trainer is used: this is the yardstick of an engine for a family that nobody has looked at yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from learners.data.examples import Example
from learners.data.images import open_picture

if TYPE_CHECKING:
    from torch import nn

    from learners.inspection.prompts import Reader

Logprobs = tuple[float, ...]


def score(model: nn.Module, reader: Reader, example: Example, num_tokens: int) -> Logprobs:
    """Natural logarithm, float32, of the last `num_tokens` tokens of the finished conversation."""
    import torch

    rendered = reader.encoder.render(example)
    images = [open_picture(image) for image in example.images] or None
    text = [rendered.prompt + rendered.answer]
    inputs = reader.processor(text=text, images=images, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -num_tokens - 1 : -1].float()
    targets = inputs["input_ids"][0, -num_tokens:, None]
    return tuple(logits.log_softmax(-1).gather(-1, targets)[:, 0].tolist())
