"""Samples of one prompt laid out in one row of tokens, so that the prompt and its images are computed once.

A row is a prompt, then the answers to it, one behind another: each sees the prompt and itself (`attention.py`). A row
grows while its answers are no longer than its prompt: further, what attention computes in vain would cost more than
the prompt that is saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learners.data.collate import Encoded
from learners.data.lengths import grouped_by_length
from learners.grpo.batch import Batch, Sample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """At least one sample; all are of `prompt`."""

    prompt: Encoded
    samples: tuple[Sample, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt.prompt_ids) + self.num_sampled

    @property
    def num_sampled(self) -> int:
        return sum(len(sample.token_ids) for sample in self.samples)

    def starts(self) -> Iterator[int]:
        """The place of each sample's first token."""
        start = len(self.prompt.prompt_ids)
        for sample in self.samples:
            yield start
            start += len(sample.token_ids)


def micro_batches(samples: Sequence[Sample], pad_id: int, max_tokens: int) -> tuple[Batch, ...]:
    """Rows of about one length together, each batch at most `max_tokens` with its padding, or one sample."""
    rows = rows_of(samples, max_tokens)
    return tuple(collate_rows(chunk, pad_id) for chunk in grouped_by_length(rows, max_tokens))


def collate_samples(samples: Sequence[Sample], pad_id: int) -> Batch:
    """One batch of all, those of one prompt together."""
    return collate_rows(rows_of(samples), pad_id)


def rows_of(samples: Sequence[Sample], max_tokens: int | None = None) -> tuple[Row, ...]:
    """Each sample in one row. A row with several is no longer than `max_tokens`."""
    by_prompt: dict[int, list[Sample]] = {}
    for sample in samples:  # by identity: comparing images would cost more than it saves
        by_prompt.setdefault(id(sample.prompt), []).append(sample)
    return tuple(row for of_prompt in by_prompt.values() for row in _split(of_prompt, max_tokens))


def collate_rows(rows: Sequence[Row], pad_id: int) -> Batch:
    """The samples in the order of the rows."""
    import torch

    samples = [sample for row in rows for sample in row.samples]
    width = max(row.num_tokens for row in rows)
    depth = max(len(sample.token_ids) for sample in samples)
    steps = torch.arange(depth)
    sampled = steps < torch.tensor([len(sample.token_ids) for sample in samples])[:, None]
    carries_loss = torch.tensor([sample.carries_loss for sample in samples])
    return Batch(
        inputs=_inputs(rows, width, pad_id),
        segments=torch.tensor([_padded(_segments(row), width, -1) for row in rows]),
        rows=torch.tensor([number for number, row in enumerate(rows) for _ in row.samples]),
        token_ids=torch.tensor([_padded(sample.token_ids, depth, 0) for sample in samples]),
        positions=_positions(rows, steps).clamp(max=width - 1),
        sampled=sampled,
        mask=sampled & carries_loss[:, None],
        rollout_logprobs=torch.tensor([_padded(sample.logprobs, depth, 0.0) for sample in samples]),
        advantages=torch.tensor([sample.advantage for sample in samples]),
    )


def _split(samples: Sequence[Sample], max_tokens: int | None) -> Iterator[Row]:
    prompt = samples[0].prompt
    num_prompt = len(prompt.prompt_ids)
    most = num_prompt if max_tokens is None else min(num_prompt, max_tokens - num_prompt)
    chunk: list[Sample] = []
    num_sampled = 0
    for sample in samples:
        if chunk and num_sampled + len(sample.token_ids) > most:
            yield Row(prompt, tuple(chunk))
            chunk, num_sampled = [], 0
        chunk.append(sample)
        num_sampled += len(sample.token_ids)
    yield Row(prompt, tuple(chunk))


def _inputs(rows: Sequence[Row], width: int, pad_id: int) -> dict[str, Tensor]:
    import torch

    ids = [[*row.prompt.prompt_ids, *(token for one in row.samples for token in one.token_ids)] for row in rows]
    inputs = {
        "input_ids": torch.tensor([_padded(row, width, pad_id) for row in ids]),
        "mm_token_type_ids": torch.tensor([_padded(row.prompt.types, width, 0) for row in rows]),
    }
    prompts = [row.prompt for row in rows]
    names = dict.fromkeys(name for prompt in prompts for name in prompt.vision)
    vision = {name: [prompt.vision[name] for prompt in prompts if name in prompt.vision] for name in names}
    return inputs | {name: torch.cat(tensors) for name, tensors in vision.items()}


def _segments(row: Row) -> list[int]:
    answers = (number for number, sample in enumerate(row.samples, start=1) for _ in sample.token_ids)
    return [*[0] * len(row.prompt.prompt_ids), *answers]


def _positions(rows: Sequence[Row], steps: Tensor) -> Tensor:
    """(B, T): a sample's first token is predicted by the prompt's last, each other one by the one before it."""
    import torch

    starts = torch.tensor([start for row in rows for start in row.starts()])
    last = torch.tensor([len(row.prompt.prompt_ids) - 1 for row in rows for _ in row.samples])
    return torch.where(steps == 0, last[:, None], starts[:, None] - 1 + steps)


def _padded(values: Sequence[float], width: int, padding: float) -> list[float]:
    return [*values, *[padding] * (width - len(values))]
