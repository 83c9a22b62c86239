"""Which replicas get no traffic for a while because they failed; pure, the time is passed in.

A connection that fails ejects at once, other failures after several in a row. Each ejection is twice as long as the one
before, until a row of successes clears the record. What was asked before a replica's return says nothing of it
afterwards: the hundred streams that one death breaks off are one failure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EjectionRule:
    max_failures: int = 3
    """Failed answers in a row that eject."""
    base_s: float = 1.0
    """How long the first ejection is."""
    max_s: float = 60.0
    """How long the longest is."""
    clean_successes: int = 10
    """Successes in a row after which the next ejection is a first one."""

    def duration_s(self, num_ejections: int) -> float:
        """Of the `num_ejections`-th ejection, counted from 1."""
        # The exponent is bounded: a float overflows at 1024.
        return min(self.max_s, self.base_s * 2.0 ** min(num_ejections - 1, 64))


@dataclass(slots=True)
class _Record:
    num_failures: int = 0
    num_successes: int = 0
    num_ejections: int = 0
    until_s: float = 0.0


class Ejection:
    """`now_s` and `asked_s` are seconds of one monotonic clock, `asked_s` when the request was sent."""

    def __init__(self, rule: EjectionRule | None = None) -> None:
        self._rule = rule or EjectionRule()
        self._records: dict[str, _Record] = {}

    def fail(self, name: str, asked_s: float, now_s: float, *, unreachable: bool = False) -> bool:
        """Counts a failure; whether it ejected the replica."""
        record = self._records.setdefault(name, _Record())
        if asked_s < record.until_s:
            return False
        record.num_successes = 0
        record.num_failures += 1
        if not unreachable and record.num_failures < self._rule.max_failures:
            return False
        record.num_ejections += 1
        record.until_s = now_s + self._rule.duration_s(record.num_ejections)
        # Back on probation: the next failure ejects, unless a success comes first.
        record.num_failures = self._rule.max_failures - 1
        return True

    def succeed(self, name: str, asked_s: float) -> None:
        record = self._records.get(name)
        if record is None or asked_s < record.until_s:
            return
        record.num_failures = 0
        record.num_successes += 1
        if record.num_successes >= self._rule.clean_successes:
            del self._records[name]

    def forget(self, name: str) -> None:
        """The name stands for another process now."""
        self._records.pop(name, None)

    def ejected_for_s(self, name: str, now_s: float) -> float:
        """How long no request goes to the replica; 0 if it is not ejected."""
        record = self._records.get(name)
        return max(0.0, record.until_s - now_s) if record is not None else 0.0

    def usable(self, names: Iterable[str], now_s: float) -> frozenset[str]:
        """Those of `names` that are not ejected; if all are, the one that returns first. Empty only for no names."""
        left_s = {name: self.ejected_for_s(name, now_s) for name in names}
        free = frozenset(name for name, seconds in left_s.items() if seconds == 0)
        return free or frozenset(sorted(left_s, key=lambda name: (left_s[name], name))[:1])
