"""The logits of answers, by a family's fast forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learners.toy.families import family_of
from learners.toy.tensors import IGNORED, Batch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class AnswerForward:
    """Forward passes of one toy, over pictures of one size."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._head = model.lm_head
        self._forward = family_of(model).forward(model)

    def answer_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, vocabulary) float32 and labels (N,) of the N answer tokens of the batch, row by row."""
        is_answer = batch.labels != IGNORED
        logits = self._head(self._forward.hidden_states(batch)[is_answer])
        return logits.float(), batch.labels[is_answer]
