"""What the tokens of a row see of each other, and where each stands: as if every answer stood alone behind its prompt.

Imports torch: only the run of a job imports this module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learners.grpo.batch import Batch


def attention_mask(segments: Tensor) -> Tensor:
    """(R, L), where no row has two answers: attention is then causal, for which there are faster kernels. Else
    (R, 1, L, L), bool: whether a token (dimension 2) sees another (dimension 3).
    """
    if segments.max() <= 1:
        return segments >= 0
    places = torch.arange(segments.shape[1], device=segments.device)
    is_behind = places[:, None] >= places
    is_prompt, is_own = segments[:, None, :] == 0, segments[:, None, :] == segments[:, :, None]
    return (is_behind & (is_prompt | is_own))[:, None]


def position_ids(backbone: Any, batch: Batch) -> Tensor:
    """(R, L), or (3, R, L) where the family numbers the tokens of images by time, height and width.

    `backbone` is the model without its head.
    """
    offsets = _offsets(batch.segments)
    if "image_grid_thw" not in batch.inputs or not hasattr(backbone, "get_rope_index"):
        return offsets
    prompts = batch.segments == 0
    width = int(prompts.sum(1).max())
    of_prompts, deltas = backbone.get_rope_index(
        batch.inputs["input_ids"][:, :width],
        mm_token_type_ids=batch.inputs["mm_token_type_ids"][:, :width],
        image_grid_thw=batch.inputs["image_grid_thw"],
        attention_mask=prompts[:, :width].long(),
    )
    positions = (offsets + deltas).expand(3, -1, -1).clone()
    positions[:, :, :width] = torch.where(prompts[:, :width], of_prompts, positions[:, :, :width])
    return positions


def _offsets(segments: Tensor) -> Tensor:
    """(R, L): how many tokens stand before each in its own sequence, the prompt and one answer."""
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    num_prompt = (segments == 0).sum(1, keepdim=True)
    is_first = torch.ones_like(segments, dtype=torch.bool)
    is_first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    first = torch.where(is_first, places, 0).cummax(1).values
    return places - first + torch.where(segments > 0, num_prompt, 0)
