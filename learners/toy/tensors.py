"""Pictures and prompts as tensors, prepared once: all pictures have one size, and distinct prompts are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from learners.toy.processor import IMAGE_PAD, NUM_IMAGE_TOKENS, NUM_PATCHES, PATCH, TURN_END, prompt_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

IGNORED = -100
_GRID = [1, round(NUM_PATCHES**0.5), round(NUM_PATCHES**0.5)]
_PATCH_VALUES = 3 * 2 * PATCH**2


@dataclass(frozen=True, slots=True)
class Pictures:
    """`pixels` (2 x images, NUM_PATCHES, values) float32 as the processor makes them: all, then all mirrored."""

    pixels: Tensor
    place: Mapping[Path, int]

    @property
    def num_images(self) -> int:
        return len(self.place)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Distinct (question, answer) pairs, padded on the right to one length L.

    `input_ids` (P, L) long; `labels` (P, L) long, the answer's tokens and the end of the turn where the token before
    them stands, `IGNORED` elsewhere; `position_ids` (3, P, L) long, the model's own M-RoPE positions.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    place: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass: `pixels` (B * NUM_PATCHES, values), the rest as in `Prompts` for B rows."""

    pixels: Tensor
    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor


def load_pictures(paths: Sequence[Path], processor: Qwen3VLProcessor, device: torch.device) -> Pictures:
    """Reads each of `paths` once."""
    import torch
    from PIL import Image, ImageOps

    distinct = sorted(set(paths))
    images = [Image.open(path).convert("RGB") for path in distinct]
    both = [*images, *map(ImageOps.mirror, images)]
    pixels = processor.image_processor(images=both, return_tensors="pt")["pixel_values"]
    pixels = pixels.reshape(len(both), NUM_PATCHES, _PATCH_VALUES)
    return Pictures(pixels.to(device, torch.float32), {path: place for place, path in enumerate(distinct)})


def encode_prompts(
    pairs: Sequence[tuple[str, str]],
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    device: torch.device,
) -> Prompts:
    """Tokens, labels and positions of each distinct (question, answer)."""
    import torch

    distinct = sorted(set(pairs))
    rows = [_encode(text, answer, processor) for text, answer in distinct]
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), length), model.config.pad_token_id)
    labels = torch.full((len(rows), length), IGNORED)
    for place, (ids, num_answer) in enumerate(rows):
        input_ids[place, : len(ids)] = torch.tensor(ids)
        labels[place, len(ids) - num_answer - 1 : len(ids) - 1] = torch.tensor(ids[-num_answer:])
    is_image = (input_ids == model.config.image_token_id).int()
    position_ids, _ = model.model.get_rope_index(input_ids, is_image, torch.tensor([_GRID] * len(rows)))
    place_of = {pair: place for place, pair in enumerate(distinct)}
    return Prompts(input_ids.to(device), labels.to(device), position_ids.to(device), place_of)


def _encode(text: str, answer: str, processor: Qwen3VLProcessor) -> tuple[list[int], int]:
    """Token ids of the whole conversation, and how many of them at the end are the answer with its end."""
    prompt = prompt_text(text).replace(IMAGE_PAD, IMAGE_PAD * NUM_IMAGE_TOKENS)
    prompt_ids = processor.tokenizer(prompt)["input_ids"]
    answer_ids = processor.tokenizer(answer + TURN_END)["input_ids"]
    return prompt_ids + answer_ids, len(answer_ids)


def collect(pictures: Pictures, prompts: Prompts, image_places: Tensor, prompt_places: Tensor) -> Batch:
    """The rows that the two index tensors, shape (B,), name, as one batch."""
    input_ids, labels = prompts.input_ids[prompt_places], prompts.labels[prompt_places]
    return Batch(
        pixels=pictures.pixels[image_places].flatten(0, 1),
        input_ids=input_ids,
        labels=labels,
        position_ids=prompts.position_ids[:, prompt_places],
    )
