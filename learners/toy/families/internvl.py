"""An InternVL of 3.3 million parameters as transformers has it (`InternVLForConditionalGeneration`, text of Qwen3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from learners.toy.families.sizes import TEXT, VISION_DEPTH, VISION_HEADS, VISION_HIDDEN, VISION_INTERMEDIATE
from learners.toy.families.turns import chat_template
from learners.toy.picture import IMAGE_MEAN, IMAGE_STD, MERGE, NUM_IMAGE_TOKENS, PATCH, SIDE
from learners.toy.tokenizer import END_OF_TEXT, TURN_END, TURN_START

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        PreTrainedTokenizerFast,
    )

    from learners.toy.tensors import Batch

IMAGE_START, IMAGE_END, IMAGE_CONTEXT, VIDEO = "<img>", "</img>", "<IMG_CONTEXT>", "<video>"

SPECIAL_TOKENS = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    IMAGE_START,
    IMAGE_END,
    IMAGE_CONTEXT,
    VIDEO,
)

CHAT_TEMPLATE = chat_template(rf"{IMAGE_CONTEXT}\n", rf"{VIDEO}\n")


class InternVlToy:
    """Implements `learners.toy.families.ToyFamily`."""

    name = "internvl"
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    named_tokens: Mapping[str, str] = MappingProxyType(
        {
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE_CONTEXT,
            "video_token": VIDEO,
        }
    )
    gpu_steps = 1_500

    def prompt_text(self, question: str) -> str:
        return f"{TURN_START}user\n{IMAGE_CONTEXT}\n{question}{TURN_END}{TURN_START}assistant\n"

    def expanded(self, prompt: str) -> str:
        return prompt.replace(IMAGE_CONTEXT, f"{IMAGE_START}{IMAGE_CONTEXT * NUM_IMAGE_TOKENS}{IMAGE_END}")

    def build_processor(self, tokenizer: PreTrainedTokenizerFast) -> InternVLProcessor:
        """InternVL's processor; pictures larger than `SIDE` x `SIDE` are cut into tiles of that size."""
        from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

        vision = {
            "size": {"height": SIDE, "width": SIDE},
            "image_mean": [IMAGE_MEAN] * 3,
            "image_std": [IMAGE_STD] * 3,
        }
        return InternVLProcessor(
            image_processor=GotOcr2ImageProcessor(crop_to_patches=False, **vision),
            tokenizer=tokenizer,
            video_processor=InternVLVideoProcessor(**vision),
            image_seq_length=NUM_IMAGE_TOKENS,
            chat_template=CHAT_TEMPLATE,
        )

    def build_model(self, tokenizer: PreTrainedTokenizerFast) -> InternVLForConditionalGeneration:
        from transformers import InternVLForConditionalGeneration

        return InternVLForConditionalGeneration(_config(tokenizer)).float()

    def pixels(self, images: Sequence[Image], processor: InternVLProcessor) -> Tensor:
        """Shape (N, 3, SIDE, SIDE)."""
        pixels: Tensor = processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    def position_ids(self, model: Any, input_ids: Tensor) -> Tensor:
        """Plain positions, shape (1, P, L)."""
        import torch

        return torch.arange(input_ids.shape[1]).expand(1, *input_ids.shape)

    def forward(self, model: Any) -> PlainForward:
        return PlainForward(model)


class PlainForward:
    """The model's own forward pass: its vision tower takes all pictures at once."""

    def __init__(self, model: InternVLForConditionalGeneration) -> None:
        self._backbone = model.model

    def hidden_states(self, batch: Batch) -> Tensor:
        output = self._backbone(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids[0],
            pixel_values=batch.pixels,
            use_cache=False,
        )
        return output.last_hidden_state


def _config(tokenizer: PreTrainedTokenizerFast) -> InternVLConfig:
    """Four text and four vision layers; the token ids are `tokenizer`'s."""
    from transformers import InternVLConfig

    def id_of(token: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(token))

    ends: dict[str, Any] = {"eos_token_id": id_of(TURN_END), "pad_token_id": id_of(END_OF_TEXT)}
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    text = {**TEXT, "model_type": "qwen3", "vocab_size": len(tokenizer), "rope_parameters": rope, **ends}
    return InternVLConfig(
        text_config=text,
        vision_config=_VISION,
        image_token_id=id_of(IMAGE_CONTEXT),
        image_seq_length=NUM_IMAGE_TOKENS,
        downsample_ratio=1 / MERGE,
        tie_word_embeddings=False,
        **ends,
    )


_VISION = {
    "hidden_size": VISION_HIDDEN,
    "intermediate_size": VISION_INTERMEDIATE,
    "num_hidden_layers": VISION_DEPTH,
    "num_attention_heads": VISION_HEADS,
    "image_size": [SIDE, SIDE],
    "patch_size": [PATCH, PATCH],
    "layer_scale_init_value": 1.0,
    "initializer_range": TEXT["initializer_range"],
}
