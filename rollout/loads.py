"""How much each replica is being asked by this process, and which one is asked next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rollout.types import Target


class Loads:
    """Counts of samples by replica: open now, and ever asked for. Of one event loop."""

    def __init__(self) -> None:
        self._num_open: Counter[str] = Counter()
        self._num_asked: Counter[str] = Counter()

    def choose(self, targets: Sequence[Target], failed_at: Mapping[str, int], preferred: str = "") -> Target:
        """Of at least one target: where this sample failed least, then the preferred one, then the least asked."""
        return min(
            targets,
            key=lambda target: (
                failed_at.get(target.name, 0),
                target.name != preferred,
                self._num_open[target.name],
                self._num_asked[target.name],
            ),
        )

    @contextmanager
    def asking(self, replica: str, num_samples: int) -> Iterator[None]:
        """Counts a request while it is open."""
        self._num_asked[replica] += num_samples
        self._num_open[replica] += num_samples
        try:
            yield
        finally:
            self._num_open[replica] -= num_samples
