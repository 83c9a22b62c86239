"""What is computed together: things of about one length, within a bound on tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar


class HasTokens(Protocol):
    @property
    def num_tokens(self) -> int: ...


T = TypeVar("T", bound=HasTokens)


def grouped_by_length(items: Sequence[T], max_tokens: int) -> Iterator[list[T]]:
    """The longest first; each group at most `max_tokens` with its padding, or one item."""
    chunk: list[T] = []
    for item in sorted(items, key=lambda one: -one.num_tokens):  # the first of a chunk is its longest
        if chunk and chunk[0].num_tokens * (len(chunk) + 1) > max_tokens:
            yield chunk
            chunk = []
        chunk.append(item)
    if chunk:
        yield chunk
