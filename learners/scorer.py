"""Log-probabilities of fixed answers under a model that changes, in float32 whatever the model computes in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learners.data.collate import Encoded, collate
from learners.vision import SeenImages

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor

MAX_TOKENS = 8192
"""Of examples that are scored at once, padding included."""

Logprobs = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Examples that are scored at once: their places among all, what the model reads, and what it saw of the images."""

    places: tuple[int, ...]
    examples: tuple[Encoded, ...]
    inputs: Mapping[str, Tensor]
    seen: SeenImages


class Scorer:
    """Log-probabilities of the same answers under a model that changes."""

    def __init__(self, model: PeftModel, batch: Sequence[Encoded], pad_id: int) -> None:
        self._model = model
        self._chunks = tuple(
            _collated([(place, batch[place]) for place in places], pad_id, model.device)
            for places in _of_one_length(batch)
        )

    def score(self) -> tuple[Logprobs, ...]:
        """Natural log-probabilities of each answer's tokens, computed in float32.

        All of `answer_ids` count, those behind the end of the turn too: an engine scores the same last tokens.
        """
        import torch

        scores: dict[int, Logprobs] = {}
        with in_float32(self._model), torch.inference_mode():
            for chunk in self._chunks:
                with chunk.seen.remembered(self._model.get_base_model().model):
                    scores |= zip(chunk.places, _score(self._model, chunk), strict=True)
        return tuple(logprobs for _, logprobs in sorted(scores.items()))


def _of_one_length(batch: Sequence[Encoded]) -> Iterator[list[int]]:
    """Places in `batch`, each chunk at most `MAX_TOKENS` with its padding, or one example."""
    chunk: list[int] = []
    for place in sorted(range(len(batch)), key=lambda place: -batch[place].num_tokens):  # the longest first
        if chunk and batch[chunk[0]].num_tokens * (len(chunk) + 1) > MAX_TOKENS:
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


def _collated(placed: Sequence[tuple[int, Encoded]], pad_id: int, device: torch.device) -> _Chunk:
    places, examples = zip(*placed, strict=True)
    inputs = {name: tensor.to(device) for name, tensor in collate(examples, pad_id).items() if name != "labels"}
    return _Chunk(places, examples, inputs, SeenImages())


def _score(model: PeftModel, chunk: _Chunk) -> Iterator[Logprobs]:
    import torch

    ids = chunk.inputs["input_ids"]
    first = min(len(encoded.prompt_ids) for encoded in chunk.examples)
    needed = torch.arange(first - 1, ids.shape[1] - 1, device=ids.device)
    logits = model(**chunk.inputs, use_cache=False, logits_to_keep=needed).logits  # (B, from `first` on, vocabulary)
    logprobs = logits.float().log_softmax(-1).gather(-1, ids[:, first:, None])[..., 0].cpu()
    for encoded, row in zip(chunk.examples, logprobs, strict=True):
        start = len(encoded.prompt_ids) - first
        yield tuple(row[start : start + len(encoded.answer_ids)].tolist())


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
