"""What users of each replica got over the last seconds: how long first tokens took, and the gaps between chunks.

Only requests through the gateway count: a job that samples from the same engine asks it directly. Belongs to the event
loop; noting one number costs less than a microsecond.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from engines.types import UserLoad

WINDOW_S = 10.0
_MAX_ANSWERS, _MAX_GAPS = 1024, 4096


@dataclass(slots=True)
class _Seen:
    """Pairs of when (seconds) and how long (seconds; None: not a stream), oldest first."""

    answers: deque[tuple[float, float | None]] = field(default_factory=lambda: deque(maxlen=_MAX_ANSWERS))
    gaps: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MAX_GAPS))


class UserLoads:
    """`clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def note_answer(self, replica: str, ttft_s: float | None) -> None:
        """An answer began, `ttft_s` after the replica was asked; None: it came whole, which says nothing of that."""
        self._of(replica).answers.append((self._clock(), ttft_s))

    def note_gap(self, replica: str, seconds: float) -> None:
        """A stream's next chunk came after the replica was waited for so long."""
        self._of(replica).gaps.append((self._clock(), seconds))

    def is_quiet(self, replica: str) -> bool:
        """Whether no answer began in the last `WINDOW_S` seconds."""
        answers = self._of(replica).answers
        return not answers or answers[-1][0] < self._clock() - WINDOW_S

    def load(self, replica: str, num_in_flight: int) -> UserLoad:
        """The last `WINDOW_S` seconds; `num_in_flight` is what the route table counts now."""
        since_s = self._clock() - WINDOW_S
        seen = self._of(replica)
        answers = [ttft_s for at_s, ttft_s in seen.answers if at_s >= since_s]
        return UserLoad(
            p95_ttft_s=_p95(ttft_s for ttft_s in answers if ttft_s is not None),
            p95_itl_s=_p95(gap_s for at_s, gap_s in seen.gaps if at_s >= since_s),
            num_in_flight=num_in_flight,
            num_requests=len(answers),
        )

    def _of(self, replica: str) -> _Seen:
        return self._seen.setdefault(replica, _Seen())


def _p95(seconds: Iterable[float]) -> float | None:
    """The nearest rank: a value that was seen."""
    ordered = sorted(seconds)
    return ordered[math.ceil(0.95 * len(ordered)) - 1] if ordered else None
