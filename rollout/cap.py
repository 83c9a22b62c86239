"""How many groups a guest may have running at once, so that users hardly notice: increase by small steps, decrease by
half (Chiu and Jain, 1989), against what users see without training. Pure logic: time is handed in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from engines.errors import Internal

ADJUST_S = 2.0
CUT_AGAIN_S = 6.0
"""After a cut, until enough of what is observed (a window of some 10 s) is of after it to cut again."""
SETTLE_S = 12.0
"""After a pause or a cut, until all that is observed is of after it."""
REMEASURE_S = 300.0
"""A baseline older than this is measured anew in a pause of `SETTLE_S`, as users' traffic changes."""


STEERED_TO = 0.5
"""Of the slowdown that users may feel, what the cap is steered to: it learns of what it does seconds later, and
what users' times do by chance adds to it."""
SLOWEST_GROWTH = 0.25
"""Of the cap, every `ADJUST_S`. Faster, and it is far too high by the time that users' times tell; the more users may
feel, the less that matters."""
SMALLEST = 1 / 16
"""Of one group's time: where it starts. Less is nothing."""
PULSE_S = 4.0
"""A share of one group's time is given in pulses so long apart."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Users over the last seconds: 95th percentiles of the time to first token and between tokens; None: none came."""

    p95_ttft_s: float | None
    p95_itl_s: float | None
    num_requests: int

    def slowdown(self, baseline: Observation) -> float:
        """How many times slower than in `baseline`, by the worse of the two; 0 if there is nothing to compare."""
        pairs = ((self.p95_ttft_s, baseline.p95_ttft_s), (self.p95_itl_s, baseline.p95_itl_s))
        return max((seen_s / alone_s for seen_s, alone_s in pairs if seen_s is not None and alone_s), default=0.0)


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
    """Fed with `observe` about once a second; `value` is the cap, 0 until the first call.

    A value below 1 is the share of the time in which one group may start; `at_once` makes pulses of it.
    """

    def __init__(self, max_running: int, users_factor: float) -> None:
        self.value = 0.0
        self.state = CapState.MEASURING
        self.baseline: Observation | None = None
        self._max_running = float(max_running)
        self._allowed = users_factor - 1.0
        self._growth = min(1.0, max(SLOWEST_GROWTH, self._allowed))
        self._step = max(1.0, max_running / 16)
        self._since_s: float | None = None
        self._adjusted_s = 0.0
        self._measured_s = 0.0

    def observe(self, seen: Observation, now_s: float) -> float:
        """The cap from now on. Without users it is full; while none of their requests has a token it stays."""
        if self._since_s is None:
            self._since_s = now_s
        if seen.num_requests == 0:
            self._enter(CapState.OPEN, self._max_running, now_s)
        elif self.state is CapState.OPEN:
            self._enter(CapState.MEASURING, 0.0, now_s)
        elif seen.p95_ttft_s is not None:
            self._adjust(seen, now_s)
        return self.value

    def _adjust(self, seen: Observation, now_s: float) -> None:
        is_settled = now_s - (self._since_s or 0.0) >= SETTLE_S
        if self.baseline is None or self.value == 0:  # measuring, or cut down to nothing
            if is_settled:
                self._measure(seen, now_s)
        elif now_s - self._measured_s >= REMEASURE_S:
            self._enter(CapState.MEASURING, 0.0, now_s)
        elif now_s - self._adjusted_s >= ADJUST_S:
            self._steer((seen.slowdown(self.baseline) - 1.0) / self._allowed, is_settled, now_s)

    def _measure(self, seen: Observation, now_s: float) -> None:
        self.baseline = seen
        self._measured_s = now_s
        self._enter(CapState.GROWING, SMALLEST, now_s)

    def _steer(self, felt: float, is_settled: bool, now_s: float) -> None:
        """`felt`: users' slowdown as a share of what they may feel."""
        if felt > STEERED_TO:
            if self.state is CapState.GROWING or now_s - self._adjusted_s >= CUT_AGAIN_S:
                self._enter(CapState.CUT, self.value / 2 if self.value >= 2 * SMALLEST else 0.0, now_s)
        elif self.state is CapState.CUT and is_settled:
            self._enter(CapState.GROWING, self.value, now_s)
        elif self.state is CapState.GROWING:
            self._adjusted_s = now_s
            growth = min(self._step, max(SMALLEST / 2, self.value * self._growth))
            self.value = min(self._max_running, self.value + growth)

    def _enter(self, state: CapState, value: float, now_s: float) -> None:
        if state is not self.state and state not in TRANSITIONS[self.state]:
            raise Internal(f"the cap cannot go from {self.state.value} to {state.value}; this is a defect")
        self.state = state
        self.value = value
        self._since_s = now_s
        self._adjusted_s = now_s


def at_once(value: float, now_s: float) -> int:
    """How many groups may run at this moment: below 1, one group in pulses."""
    return int(value) if value >= 1 else int(now_s % PULSE_S < value * PULSE_S)
