"""One forward pass over pictures of one size.

Without FlashAttention transformers attends to each picture in a Python loop; here all of a batch go in one call, and
what depends on the grid alone is computed once. The results are the same: a test holds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from learners.toy.picture import NUM_PATCHES

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import Qwen3VLForConditionalGeneration

    from learners.toy.tensors import Batch

_ATTENTION = "tandem_equal_pictures"


class EqualPictures:
    """The forward pass of `model`, whose vision tower is switched to attend to all pictures of a batch at once."""

    def __init__(self, model: Qwen3VLForConditionalGeneration) -> None:
        import torch
        from transformers import AttentionInterface
        from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

        AttentionInterface.register(_ATTENTION, _attend_within_pictures)
        self._model = model
        self._visual = model.model.visual
        self._visual.config._attn_implementation = _ATTENTION
        side = round(NUM_PATCHES**0.5)
        self._grid = torch.tensor([[1, side, side]], device=model.device)
        merge = self._visual.config.spatial_merge_size
        self._positions = get_vision_position_ids(self._grid, merge)
        self._interpolation = get_vision_interpolation_indices_and_weights(
            self._grid,
            num_grid_per_side=self._visual.num_grid_per_side,
            mode=self._visual.interpolation_mode,
            align_corners=self._visual.interpolation_align_corners,
            spatial_merge_size=merge,
        )

    def hidden_states(self, batch: Batch) -> Tensor:
        """Of the last layer, shape (B, L, hidden)."""
        import torch

        num = batch.input_ids.shape[0]
        indices, weights = self._interpolation
        output = self._model.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            pixel_values=batch.pixels.flatten(0, 1),
            image_grid_thw=self._grid.expand(num, -1),
            image_position_ids=self._positions.repeat(num, 1),
            image_interp_indices=indices.repeat(num, 1),
            image_interp_weights=weights.repeat(num, 1),
            image_cu_seqlens=torch.tensor([0, num * NUM_PATCHES], dtype=torch.int32),
            use_cache=False,
        )
        return output.last_hidden_state


def _attend_within_pictures(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention among the NUM_PATCHES of each picture; in (1, heads, N, width), out (1, N, heads, width)."""
    from torch.nn.functional import scaled_dot_product_attention

    def per_picture(packed: Tensor) -> Tensor:
        _, heads, _, width = packed.shape
        return packed.reshape(heads, -1, NUM_PATCHES, width).transpose(0, 1)

    mixed = scaled_dot_product_attention(per_picture(query), per_picture(key), per_picture(value), scale=scaling)
    return mixed.transpose(1, 2).flatten(0, 1).unsqueeze(0), None
