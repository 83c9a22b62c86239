"""The toy model: a Qwen3-VL of 4.3 million parameters, built from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from learners.toy.processor import (
    END_OF_TEXT,
    IMAGE_PAD,
    MERGE,
    NUM_PATCHES,
    PATCH,
    TURN_END,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
)

if TYPE_CHECKING:
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
    )

HIDDEN = 256
INITIALIZER_RANGE = 0.05


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Four text and four vision layers; the token ids are `tokenizer`'s."""
    from transformers import Qwen3VLConfig

    def id_of(token: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(token))

    ends: dict[str, Any] = {"eos_token_id": id_of(TURN_END), "pad_token_id": id_of(END_OF_TEXT)}
    return Qwen3VLConfig(
        text_config=_text_config(len(tokenizer)) | ends,
        vision_config=_vision_config(),
        image_token_id=id_of(IMAGE_PAD),
        video_token_id=id_of(VIDEO_PAD),
        vision_start_token_id=id_of(VISION_START),
        vision_end_token_id=id_of(VISION_END),
        tie_word_embeddings=False,
        **ends,
    )


def _text_config(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [12, 10, 10],
            "mrope_interleaved": True,
        },
    }


def _vision_config() -> dict[str, Any]:
    return {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": NUM_PATCHES,
        "deepstack_visual_indexes": [1, 2],
        "initializer_range": INITIALIZER_RANGE,
    }


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3VLForConditionalGeneration:
    """Random weights in float32, the same for the same seed."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    return Qwen3VLForConditionalGeneration(build_config(tokenizer)).float()


def save(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, directory: Path) -> None:
    """Writes what `AutoModelForImageTextToText`, `AutoProcessor` and an engine load; weights in bfloat16."""
    import torch
    from transformers import GenerationConfig

    config = model.config
    model.generation_config = GenerationConfig(
        eos_token_id=[config.eos_token_id, config.pad_token_id], pad_token_id=config.pad_token_id
    )
    directory.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(directory)
    processor.save_pretrained(directory)
