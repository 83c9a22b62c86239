"""A Qwen3-VL of 4.3 million parameters, built from a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from learners.toy.families.qwen3_vl_forward import EqualPictures
from learners.toy.families.sizes import TEXT, VISION_DEPTH, VISION_HEADS, VISION_HIDDEN, VISION_INTERMEDIATE
from learners.toy.families.turns import chat_template
from learners.toy.picture import IMAGE_MEAN, IMAGE_STD, MERGE, NUM_IMAGE_TOKENS, NUM_PATCHES, PATCH, SIDE
from learners.toy.tokenizer import END_OF_TEXT, TURN_END, TURN_START

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
    )

VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
_GRID = [1, round(NUM_PATCHES**0.5), round(NUM_PATCHES**0.5)]

# Qwen3-VL's own, in its order.
SPECIAL_TOKENS = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    VISION_START,
    VISION_END,
    "<|vision_pad|>",
    IMAGE_PAD,
    VIDEO_PAD,
)

CHAT_TEMPLATE = chat_template(f"{VISION_START}{IMAGE_PAD}{VISION_END}", f"{VISION_START}{VIDEO_PAD}{VISION_END}")


class Qwen3VlToy:
    """Implements `learners.toy.families.ToyFamily`."""

    name = "qwen3_vl"
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    named_tokens: Mapping[str, str] = MappingProxyType({})
    gpu_steps = 900

    def prompt_text(self, question: str) -> str:
        user = f"{TURN_START}user\n{VISION_START}{IMAGE_PAD}{VISION_END}{question}{TURN_END}"
        return f"{user}{TURN_START}assistant\n"

    def expanded(self, prompt: str) -> str:
        return prompt.replace(IMAGE_PAD, IMAGE_PAD * NUM_IMAGE_TOKENS)

    def build_processor(self, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
        """Qwen3-VL's processor; larger pictures are scaled down to about `NUM_IMAGE_TOKENS` tokens."""
        from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

        vision = {
            "patch_size": PATCH,
            "merge_size": MERGE,
            "temporal_patch_size": 2,
            "image_mean": [IMAGE_MEAN] * 3,
            "image_std": [IMAGE_STD] * 3,
            "size": {"shortest_edge": (SIDE // 2) ** 2, "longest_edge": SIDE**2},  # in pixels
        }
        return Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(**vision),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(**vision),
            chat_template=CHAT_TEMPLATE,
        )

    def build_model(self, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
        from transformers import Qwen3VLForConditionalGeneration

        return Qwen3VLForConditionalGeneration(_config(tokenizer)).float()

    def pixels(self, images: Sequence[Image], processor: Qwen3VLProcessor) -> Tensor:
        """Shape (N, NUM_PATCHES, values)."""
        pixels: Tensor = processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels.reshape(len(images), NUM_PATCHES, -1)

    def position_ids(self, model: Any, input_ids: Tensor) -> Tensor:
        """The model's own M-RoPE positions, shape (3, P, L)."""
        import torch

        is_image = (input_ids == model.config.image_token_id).int()
        positions, _ = model.model.get_rope_index(input_ids, is_image, torch.tensor([_GRID] * len(input_ids)))
        return positions

    def forward(self, model: Any) -> EqualPictures:
        return EqualPictures(model)


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Four text and four vision layers; the token ids are `tokenizer`'s."""
    from transformers import Qwen3VLConfig

    def id_of(token: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(token))

    ends: dict[str, Any] = {"eos_token_id": id_of(TURN_END), "pad_token_id": id_of(END_OF_TEXT)}
    mrope = {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [12, 10, 10],
        "mrope_interleaved": True,
    }
    return Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": mrope, **ends},
        vision_config=_VISION,
        image_token_id=id_of(IMAGE_PAD),
        video_token_id=id_of(VIDEO_PAD),
        vision_start_token_id=id_of(VISION_START),
        vision_end_token_id=id_of(VISION_END),
        tie_word_embeddings=False,
        **ends,
    )


_VISION = {
    "depth": VISION_DEPTH,
    "hidden_size": VISION_HIDDEN,
    "intermediate_size": VISION_INTERMEDIATE,
    "num_heads": VISION_HEADS,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "out_hidden_size": TEXT["hidden_size"],
    "num_position_embeddings": NUM_PATCHES,
    "deepstack_visual_indexes": [1, 2],
    "initializer_range": TEXT["initializer_range"],
}
