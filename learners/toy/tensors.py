"""Pictures and prompts as tensors, prepared once: all pictures have one size, and distinct prompts are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from learners.toy.families import ToyFamily, family_of
from learners.toy.tokenizer import TURN_END

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, ProcessorMixin

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Pictures:
    """`pixels` (2 x images, ...) float32, one entry a picture as its family makes them: all, then all mirrored."""

    pixels: Tensor
    place: Mapping[Path, int]

    @property
    def num_images(self) -> int:
        return len(self.place)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Distinct (question, answer) pairs, padded on the right to one length L.

    `input_ids` (P, L) long; `labels` (P, L) long, the answer's tokens and the end of the turn where the token before
    them stands, `IGNORED` elsewhere; `position_ids` (axes, P, L) long, the model's own.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    place: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass: `pixels` (B, ...), the rest as in `Prompts` for B rows."""

    pixels: Tensor
    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor


def load_pictures(
    paths: Sequence[Path], family: ToyFamily, processor: ProcessorMixin, device: torch.device
) -> Pictures:
    """Reads each of `paths` once."""
    import torch
    from PIL import Image, ImageOps

    distinct = sorted(set(paths))
    images = [Image.open(path).convert("RGB") for path in distinct]
    pixels = family.pixels([*images, *map(ImageOps.mirror, images)], processor)
    return Pictures(pixels.to(device, torch.float32), {path: place for place, path in enumerate(distinct)})


def encode_prompts(
    pairs: Sequence[tuple[str, str]],
    model: PreTrainedModel,
    processor: ProcessorMixin,
    device: torch.device,
) -> Prompts:
    """Tokens, labels and positions of each distinct (question, answer)."""
    import torch

    family = family_of(model)
    distinct = sorted(set(pairs))
    rows = [_encode(text, answer, family, processor) for text, answer in distinct]
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), length), processor.tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), IGNORED)
    for place, (ids, num_answer) in enumerate(rows):
        input_ids[place, : len(ids)] = torch.tensor(ids)
        labels[place, len(ids) - num_answer - 1 : len(ids) - 1] = torch.tensor(ids[-num_answer:])
    position_ids = family.position_ids(model, input_ids)
    place_of = {pair: place for place, pair in enumerate(distinct)}
    return Prompts(input_ids.to(device), labels.to(device), position_ids.to(device), place_of)


def _encode(text: str, answer: str, family: ToyFamily, processor: ProcessorMixin) -> tuple[list[int], int]:
    """Token ids of the whole conversation, and how many of them at the end are the answer with its end."""
    prompt_ids = processor.tokenizer(family.expanded(family.prompt_text(text)))["input_ids"]
    answer_ids = processor.tokenizer(answer + TURN_END)["input_ids"]
    return prompt_ids + answer_ids, len(answer_ids)


def collect(pictures: Pictures, prompts: Prompts, image_places: Tensor, prompt_places: Tensor) -> Batch:
    """The rows that the two index tensors, shape (B,), name, as one batch."""
    return Batch(
        pixels=pictures.pixels[image_places],
        input_ids=prompts.input_ids[prompt_places],
        labels=prompts.labels[prompt_places],
        position_ids=prompts.position_ids[:, prompt_places],
    )
