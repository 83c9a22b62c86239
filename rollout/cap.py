"""How many groups a guest may have running at once, so that users hardly notice: additive increase, multiplicative
decrease (Chiu and Jain, 1989), against users' time to first token without training. Pure logic: time is handed in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from engines.errors import Internal

ADJUST_S = 2.0
SETTLE_S = 12.0
"""After a pause or a cut, until what is observed (a window of some 10 s) is of after it."""
REMEASURE_S = 300.0
"""A baseline older than this is measured anew in a pause of `SETTLE_S`, as users' traffic changes."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Users over the last seconds: the 95th percentile of their time to first token; None: no token came."""

    p95_ttft_s: float | None
    num_requests: int


class CapState(Enum):
    """Of the cap: open (no users), measuring (paused, for a baseline), growing, and cut (no growth until settled)."""

    OPEN = "open"
    MEASURING = "measuring"
    GROWING = "growing"
    CUT = "cut"


TRANSITIONS: dict[CapState, frozenset[CapState]] = {
    CapState.OPEN: frozenset({CapState.MEASURING}),
    CapState.MEASURING: frozenset({CapState.OPEN, CapState.GROWING}),
    CapState.GROWING: frozenset({CapState.OPEN, CapState.CUT, CapState.MEASURING}),
    CapState.CUT: frozenset({CapState.OPEN, CapState.GROWING, CapState.MEASURING}),
}


class AdaptiveCap:
    """Fed with `observe` about once a second; `value` is the cap, 0 until the first call."""

    def __init__(self, max_running: int, users_factor: float) -> None:
        self.value = 0
        self.state = CapState.MEASURING
        self.baseline_s: float | None = None
        self._max_running = max_running
        self._factor = users_factor
        self._step = max(1, max_running // 16)
        self._since_s: float | None = None
        self._adjusted_s = 0.0
        self._measured_s = 0.0

    def observe(self, seen: Observation, now_s: float) -> int:
        """The cap from now on. Without users it is full; while none of their requests has a token it stays."""
        if self._since_s is None:
            self._since_s = now_s
        if seen.num_requests == 0:
            self._enter(CapState.OPEN, self._max_running, now_s)
        elif self.state is CapState.OPEN:
            self._enter(CapState.MEASURING, 0, now_s)
        elif seen.p95_ttft_s is not None:
            self._adjust(seen.p95_ttft_s, now_s)
        return self.value

    def _adjust(self, p95_s: float, now_s: float) -> None:
        is_settled = now_s - (self._since_s or 0.0) >= SETTLE_S
        if self.value == 0:  # measuring, or cut down to nothing
            if is_settled:
                self._measure(p95_s, now_s)
        elif now_s - self._measured_s >= REMEASURE_S:
            self._enter(CapState.MEASURING, 0, now_s)
        elif now_s - self._adjusted_s >= ADJUST_S:
            self._steer(p95_s, is_settled, now_s)

    def _measure(self, p95_s: float, now_s: float) -> None:
        self.baseline_s = p95_s
        self._measured_s = now_s
        self._enter(CapState.GROWING, min(self._max_running, self._step), now_s)

    def _steer(self, p95_s: float, is_settled: bool, now_s: float) -> None:
        self._adjusted_s = now_s
        if p95_s > self._factor * (self.baseline_s or 0.0):
            self._enter(CapState.CUT, self.value // 2, now_s)
        elif self.state is CapState.CUT and is_settled:
            self._enter(CapState.GROWING, self.value, now_s)
        elif self.state is CapState.GROWING:
            self.value = min(self._max_running, self.value + self._step)

    def _enter(self, state: CapState, value: int, now_s: float) -> None:
        if state is not self.state and state not in TRANSITIONS[self.state]:
            raise Internal(f"the cap cannot go from {self.state.value} to {state.value}; this is a defect")
        self.state = state
        self.value = value
        self._since_s = now_s
        self._adjusted_s = now_s
