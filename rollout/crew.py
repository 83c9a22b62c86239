"""Which worker gets the next group: the least busy one that is well; one that fails again and again is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.worker import Worker

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0
MAX_DOUBLINGS = 16


@dataclass(slots=True)
class Place:
    """One worker. After a failure it rests, then gets one group at a time until one comes back."""

    worker: Worker
    num_running: int = 0
    num_failures: int = 0
    failed_at_s: float = 0.0
    ready_at_s: float = 0.0

    def is_free(self, now_s: float) -> bool:
        return self.num_failures == 0 or (now_s >= self.ready_at_s and self.num_running == 0)


class Crew:
    """Of one event loop; times are of any one monotonic clock."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._places = [Place(worker) for worker in workers]

    def choose(self, now_s: float) -> Place | None:
        free = [place for place in self._places if place.is_free(now_s)]
        return min(free, key=lambda place: place.num_running) if free else None

    def rest_s(self, now_s: float) -> float | None:
        """Until the next resting worker may be tried; none if no worker rests."""
        rests = [place.ready_at_s - now_s for place in self._places if place.ready_at_s > now_s and place.num_failures]
        return min(rests, default=None)

    def succeeded(self, place: Place) -> None:
        place.num_failures = 0

    def failed(self, place: Place, started_s: float, now_s: float) -> None:
        """Groups that were under way at a failure and fail with it count as one."""
        if place.num_failures and started_s < place.failed_at_s:
            return
        place.num_failures += 1
        place.failed_at_s = now_s
        place.ready_at_s = now_s + min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(place.num_failures - 1, MAX_DOUBLINGS))
