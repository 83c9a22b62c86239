"""Which example is used at which step: a pure function of the seed, so that a resumed job goes on exactly there."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """`order`: indices of examples, epoch after epoch; a step takes `batch_size` of them and may span two epochs."""

    order: tuple[int, ...]
    batch_size: int

    @property
    def num_steps(self) -> int:
        return -(-len(self.order) // self.batch_size)


def build_schedule(
    num_examples: int, *, batch_size: int, epochs: int | None, max_steps: int | None, seed: int
) -> Schedule:
    """Every epoch is a permutation of its own: each example exactly once. `max_steps` may end within an epoch."""
    total = max_steps * batch_size if max_steps is not None else (epochs or 1) * num_examples
    order: list[int] = []
    epoch = 0
    while len(order) < total:
        indices = list(range(num_examples))
        random.Random(f"{seed}/{epoch}").shuffle(indices)
        order += indices
        epoch += 1
    return Schedule(tuple(order[:total]), batch_size)
