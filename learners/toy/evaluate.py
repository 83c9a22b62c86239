"""Accuracy by kind of question.

An answer counts if at each of its tokens, the end of the turn included, the right one is the most likely. That
equals greedy generation followed by an exact match, without generating.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import BadRequest
from learners.toy.easy_vqa import Kind, Question
from learners.toy.families import family_of
from learners.toy.forward import AnswerForward
from learners.toy.tensors import IGNORED, Batch, collect, encode_prompts, load_pictures

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, ProcessorMixin

_BATCH = 100


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of `num` questions answered right, in all and by kind."""

    num: int
    overall: float
    by_kind: Mapping[Kind, float]


def load_model(directory: Path, adapter: Path | None = None) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model directory in float32, with a PEFT adapter merged into it if given, and its processor."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    for path in (directory, *([adapter] if adapter else [])):
        if not path.is_dir():
            raise BadRequest(f"{path} is not a directory: name one that holds a model or an adapter", param="model")
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model, AutoProcessor.from_pretrained(directory)


def evaluate(model: PreTrainedModel, processor: ProcessorMixin, rows: Sequence[Question]) -> Accuracy:
    """Asks `model`, as it is, each of `rows`."""
    right = answered_right(model, processor, rows)
    return Accuracy(
        num=len(rows),
        overall=sum(right) / len(rows),
        by_kind={kind: _share([ok for ok, row in zip(right, rows, strict=True) if row.kind is kind]) for kind in Kind},
    )


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right) if right else 0.0


def answered_right(model: PreTrainedModel, processor: ProcessorMixin, rows: Sequence[Question]) -> list[bool]:
    """For each of `rows`, whether `model` answers it right."""
    import torch

    device = model.device
    pictures = load_pictures([row.image_path for row in rows], family_of(model), processor, device)
    prompts = encode_prompts([(row.text, row.answer) for row in rows], model, processor, device)
    images = torch.tensor([pictures.place[row.image_path] for row in rows], device=device)
    texts = torch.tensor([prompts.place[row.text, row.answer] for row in rows], device=device)
    forward = AnswerForward(model.eval())
    right: list[bool] = []
    with torch.inference_mode():
        for image_places, text_places in zip(images.split(_BATCH), texts.split(_BATCH), strict=True):
            right += _rows_right(forward, collect(pictures, prompts, image_places, text_places)).tolist()
    return right


def _rows_right(forward: AnswerForward, batch: Batch) -> Tensor:
    """Shape (B,) bool: every answer token of the row is the most likely one."""
    import torch

    logits, labels = forward.answer_logits(batch)
    is_answer = batch.labels != IGNORED
    wrong = torch.zeros(is_answer.shape, dtype=torch.bool, device=is_answer.device)
    wrong[is_answer] = logits.argmax(-1) != labels
    return ~wrong.any(dim=1)
