"""The learner's half of the proof of delivery: log-probabilities of fixed answers, without and with the adapter.

An engine scores the same rendered conversation; the differences (adapter - base) of both must agree.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engines.adapter import ProbeRecord
from learners.data.collate import Encoded, Encoder, collate
from learners.data.examples import Example, Message, Picture, Text, to_data_url
from learners.data.images import open_picture

if TYPE_CHECKING:
    from peft import PeftModel

MAX_IMAGE_BYTES = 128 * 1024
MAX_SIDE = 448

Logprobs = tuple[float, ...]


class Probe:
    """A few of the job's own examples, scored under the base once and under the adapter at every checkpoint."""

    def __init__(self, model: PeftModel, encoder: Encoder, examples: Sequence[Example], size: int) -> None:
        self._model = model
        self._examples = choose(examples, size)
        self._encoded = tuple(encoder.encode_whole(example) for example in self._examples)
        with model.disable_adapter():
            self._base = score(model, self._encoded, encoder.pad_id)
        self._pad_id = encoder.pad_id

    @property
    def size(self) -> int:
        return len(self._examples)

    def records(self) -> tuple[ProbeRecord, ...]:
        """Scores the adapter as it is now."""
        adapted = score(self._model, self._encoded, self._pad_id)
        rows = zip(self._examples, self._encoded, self._base, adapted, strict=True)
        return tuple(_record(*row) for row in rows)


def choose(examples: Sequence[Example], size: int) -> tuple[Example, ...]:
    """Single questions spread over the data, with at most one image each; different ones as far as there are.

    Empty if every example shows several images or goes on from an earlier turn.
    """
    single = [example for example in examples if _is_single(example)]
    by_text = {(_question(example), example.answer): example for example in reversed(single)}
    distinct = list(reversed(by_text.values()))
    step = max(1, len(distinct) // size)
    return tuple(_reduced(example) for example in distinct[::step][:size])


def score(model: PeftModel, batch: Sequence[Encoded], pad_id: int) -> tuple[Logprobs, ...]:
    """Natural log-probabilities of each answer's tokens, computed in float32 and one example at a time.

    All of `answer_ids` count, those behind the end of the turn too: an engine scores the same last tokens.
    """
    import torch

    scores = []
    with in_float32(model), torch.inference_mode():
        for encoded in batch:
            inputs = {name: tensor.to(model.device) for name, tensor in collate([encoded], pad_id).items()}
            del inputs["labels"]
            num_tokens = len(encoded.answer_ids)
            logits = model(**inputs, use_cache=False).logits[0, -num_tokens - 1 : -1]  # (num_tokens, vocabulary)
            logprobs = logits.float().log_softmax(-1).gather(-1, inputs["input_ids"][0, -num_tokens:, None])
            scores.append(tuple(logprobs[:, 0].tolist()))
    return tuple(scores)


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


def _record(example: Example, encoded: Encoded, base: Logprobs, adapted: Logprobs) -> ProbeRecord:
    image = example.images[0] if example.images else None
    return ProbeRecord(
        text=_question(example),
        answer=example.answer,
        image=None if image is None else to_data_url(image.read()),
        num_tokens=len(encoded.answer_ids),
        token_ids=encoded.answer_ids,
        base_logprobs=base,
        adapter_logprobs=adapted,
    )


def _is_single(example: Example) -> bool:
    turns = [message for message in example.prompt if message.role != "system"]
    return len(turns) == 1 and len(example.images) <= 1


def _question(example: Example) -> str:
    return next(message.text for message in example.prompt if message.role == "user")


def _reduced(example: Example) -> Example:
    """Image first, then text: the order in which an engine is asked."""
    images = tuple(_small(image) for image in example.images)
    message = Message("user", (*images, Text(_question(example))))
    return Example(example.id, example.line, (message,), example.answer)


def _small(picture: Picture) -> Picture:
    content = picture.read()
    if len(content) <= MAX_IMAGE_BYTES:
        return Picture(content=content)
    image = open_picture(picture)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(content=buffer.getvalue())
