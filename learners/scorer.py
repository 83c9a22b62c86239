"""Log-probabilities of fixed answers under a model that changes, in float32 whatever the model computes in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learners.data.collate import Encoded, collate
from learners.data.lengths import grouped_by_length
from learners.vision import SeenImages

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor

MAX_TOKENS = 8192
"""Of examples that are scored at once, padding included."""

Logprobs = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Placed:
    """An example and its place among all."""

    place: int
    encoded: Encoded

    @property
    def num_tokens(self) -> int:
        return self.encoded.num_tokens


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Examples that are scored at once, what the model reads, and what it saw of the images."""

    placed: tuple[_Placed, ...]
    inputs: Mapping[str, Tensor]
    seen: SeenImages


class Scorer:
    """Log-probabilities of the same answers under a model that changes."""

    def __init__(self, model: PeftModel, batch: Sequence[Encoded], pad_id: int) -> None:
        placed = [_Placed(place, encoded) for place, encoded in enumerate(batch)]
        self._model = model
        self._chunks = tuple(_collated(chunk, pad_id, model.device) for chunk in grouped_by_length(placed, MAX_TOKENS))

    def score(self) -> tuple[Logprobs, ...]:
        """Natural log-probabilities of each answer's tokens, computed in float32.

        All of `answer_ids` count, those behind the end of the turn too: an engine scores the same last tokens.
        """
        import torch

        scores: dict[int, Logprobs] = {}
        with in_float32(self._model), torch.inference_mode():
            for chunk in self._chunks:
                places = (placed.place for placed in chunk.placed)
                scores |= zip(places, _score(self._model, chunk), strict=True)
        return tuple(logprobs for _, logprobs in sorted(scores.items()))


def _collated(placed: Sequence[_Placed], pad_id: int, device: torch.device) -> _Chunk:
    tensors = collate([one.encoded for one in placed], pad_id)
    inputs = {name: tensor.to(device) for name, tensor in tensors.items() if name != "labels"}
    return _Chunk(tuple(placed), inputs, SeenImages())


def _score(model: PeftModel, chunk: _Chunk) -> Iterator[Logprobs]:
    """Only what predicts an answer goes through the head: its vocabulary is what takes memory."""
    backbone = model.get_base_model().model
    with chunk.seen.remembered(backbone):
        hidden = backbone(**chunk.inputs, use_cache=False).last_hidden_state  # (B, L, width)
    for row, placed in enumerate(chunk.placed):
        start, num = len(placed.encoded.prompt_ids), len(placed.encoded.answer_ids)
        logits = model.get_output_embeddings()(hidden[row, start - 1 : start - 1 + num])
        targets = chunk.inputs["input_ids"][row, start : start + num, None]
        yield tuple(logits.float().log_softmax(-1).gather(-1, targets)[:, 0].tolist())


@contextmanager
def in_float32(model: PeftModel) -> Iterator[None]:
    """Evaluates without dropout and with every frozen weight in float32; puts all of it back."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    kept = [(parameter, parameter.dtype) for parameter in frozen if parameter.is_floating_point()]
    was_training = model.training
    model.eval()
    for parameter, _ in kept:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in kept:
            parameter.data = parameter.data.to(dtype)
        model.train(was_training)
