"""The learner's half of the proof of delivery: log-probabilities of fixed answers, without and with the adapter.

An engine scores the same rendered conversation; the differences (adapter - base) of both must agree.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engines.adapter import ProbeRecord
from learners.data.collate import Encoded, Encoder
from learners.data.examples import Example, Message, Picture, Text, to_data_url
from learners.data.images import open_picture
from learners.scorer import Logprobs, Scorer

if TYPE_CHECKING:
    from peft import PeftModel

MAX_IMAGE_BYTES = 128 * 1024
MAX_SIDE = 448


class Probe:
    """A few of the job's own examples, scored under the base once and under the adapter at every checkpoint."""

    def __init__(self, model: PeftModel, encoder: Encoder, examples: Sequence[Example], size: int) -> None:
        self._examples = choose(examples, size)
        self._encoded = tuple(encoder.encode_whole(example) for example in self._examples)
        self._scorer = Scorer(model, self._encoded, encoder.pad_id)
        with model.disable_adapter():
            self._base = self._scorer.score()

    @property
    def size(self) -> int:
        return len(self._examples)

    def records(self) -> tuple[ProbeRecord, ...]:
        """Scores the adapter as it is now."""
        rows = zip(self._examples, self._encoded, self._base, self._scorer.score(), strict=True)
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
