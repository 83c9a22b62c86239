"""Which prompt is sampled next, so that every position of the schedule is used exactly once, whatever fails."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from engines.errors import Internal


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """The positions that are used up: all below `low`, and those of `above`, ascending."""

    low: int = 0
    above: tuple[int, ...] = ()

    def positions(self) -> set[int]:
        return {*range(self.low), *self.above}


class PromptQueue:
    """Positions of `order`, which names a row at each. One is waiting, out (being sampled or buffered), or consumed."""

    def __init__(self, order: Sequence[int], consumed: Collection[int] = ()) -> None:
        self._order = order
        self._low = 0
        self._above: set[int] = set(consumed)
        self._waiting = [position for position in range(len(order)) if position not in self._above]
        self._out: set[int] = set()
        self._compact()

    @property
    def num_left(self) -> int:
        """Positions that are not consumed, those that are out among them."""
        return len(self._waiting) + len(self._out)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def row(self, position: int) -> int:
        return self._order[position]

    def next(self) -> int | None:
        """The first waiting position, which is out from now on; none when all are out or consumed."""
        if not self._waiting:
            return None
        position = heapq.heappop(self._waiting)
        self._out.add(position)
        return position

    def claim(self, position: int) -> None:
        """Takes out one that a checkpoint's buffer holds."""
        if position not in self._waiting:
            raise Internal(f"position {position} of the schedule cannot be restored: it is not waiting")
        self._waiting.remove(position)
        heapq.heapify(self._waiting)
        self._out.add(position)

    def give_back(self, position: int) -> None:
        """To be sampled again, before all later ones."""
        self._leave(position)
        heapq.heappush(self._waiting, position)

    def consume(self, position: int) -> None:
        """Used up, learned from or not."""
        self._leave(position)
        self._above.add(position)
        self._compact()

    def snapshot(self) -> QueueSnapshot:
        return QueueSnapshot(self._low, tuple(sorted(self._above)))

    def _leave(self, position: int) -> None:
        if position not in self._out:
            raise Internal(f"position {position} of the schedule came back twice; this is a defect, please report it")
        self._out.remove(position)

    def _compact(self) -> None:
        while self._low in self._above:
            self._above.remove(self._low)
            self._low += 1
