"""The staleness rule over random schedules of sampling, learning and delivery."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engines.errors import BadRequest, Internal
from rollout.staleness import Staleness


class Schedules(RuleBasedStateMachine):
    """Any order of starts, ends, steps and deliveries, with a learner that takes the oldest fresh groups."""

    @initialize(max_staleness=st.integers(0, 3), per_step=st.integers(1, 4), max_running=st.integers(1, 9))
    def begin(self, max_staleness: int, per_step: int, max_running: int) -> None:
        self.rule_book = Staleness(max_staleness, per_step, max_running)
        self.max_staleness, self.per_step, self.max_running = max_staleness, per_step, max_running
        self.learner, self.delivered = 1, 1
        self.running: list[int] = []
        self.buffer: list[int] = []
        self.num_consumed = 0

    @precondition(lambda self: self.rule_book.capacity() > 0)
    @rule()
    def start(self) -> None:
        self.rule_book.started()
        self.running.append(self.delivered)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), is_good=st.booleans())
    def end(self, data: st.DataObject, is_good: bool) -> None:
        version = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if is_good:
            self.rule_book.accepted()
            self.buffer.append(version)
        else:
            self.rule_book.lost()

    @precondition(lambda self: self.num_fresh() >= self.per_step)
    @rule()
    def learn(self) -> None:
        self.drop_stale()
        self.buffer.sort()
        taken, self.buffer = self.buffer[: self.per_step], self.buffer[self.per_step :]
        for version in taken:
            assert 0 <= self.learner - version <= self.max_staleness
        self.num_consumed += len(taken)
        self.learner += 1
        self.rule_book.learned()

    @precondition(lambda self: self.delivered < self.learner)
    @rule()
    def deliver(self) -> None:
        self.delivered = self.learner
        self.rule_book.delivered(self.delivered)

    @rule()
    def drop_stale(self) -> None:
        for version in [version for version in self.buffer if not self.rule_book.is_fresh(version)]:
            self.buffer.remove(version)
            self.rule_book.dropped()

    @invariant()
    def never_runs_further_ahead_than_allowed(self) -> None:
        ahead = len(self.running) + len(self.buffer) + self.num_consumed
        assert ahead <= (self.max_staleness + self.delivered) * self.per_step
        assert len(self.running) <= self.max_running

    @invariant()
    def never_gets_stuck(self) -> None:
        if not self.running and self.delivered == self.learner and len(self.buffer) == self.num_fresh() < self.per_step:
            assert self.rule_book.capacity() > 0

    def num_fresh(self) -> int:
        return sum(self.learner - version <= self.max_staleness for version in self.buffer)


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def accept(staleness: Staleness, count: int) -> None:
    for _ in range(count):
        staleness.started()
        staleness.accepted()


@pytest.mark.timeout(5)
def test_zero_is_strictly_synchronous() -> None:
    staleness = Staleness(0, groups_per_step=3, max_running=99)
    assert staleness.capacity() == 3
    accept(staleness, 3)
    assert staleness.capacity() == 0
    staleness.learned()
    assert staleness.capacity() == 0
    assert not staleness.is_fresh(1)
    staleness.delivered(2)
    assert staleness.capacity() == 3


@pytest.mark.timeout(5)
def test_one_is_one_step_off() -> None:
    staleness = Staleness(1, groups_per_step=3, max_running=99)
    assert staleness.capacity() == 6
    accept(staleness, 6)
    staleness.learned()
    assert staleness.is_fresh(1)
    assert staleness.capacity() == 0
    staleness.delivered(2)
    assert staleness.capacity() == 3


@pytest.mark.timeout(5)
def test_nothing_starts_by_a_version_that_is_too_old_itself() -> None:
    staleness = Staleness(0, groups_per_step=2, max_running=9)
    accept(staleness, 2)
    staleness.learned()
    staleness.dropped()
    assert staleness.capacity() == 0


@pytest.mark.timeout(5)
def test_what_runs_over_a_lower_limit_only_keeps_new_ones_out() -> None:
    staleness = Staleness(2, groups_per_step=4, max_running=5)
    for _ in range(3):
        staleness.started()
    staleness.limit(2)
    assert staleness.capacity() == 0
    staleness.lost()
    staleness.lost()
    assert staleness.capacity() == 1


@pytest.mark.timeout(5)
def test_a_defect_in_counting_is_an_error() -> None:
    staleness = Staleness(0, groups_per_step=1, max_running=1)
    with pytest.raises(Internal):
        staleness.lost()
    with pytest.raises(Internal):
        staleness.dropped()
    with pytest.raises(BadRequest):
        Staleness(-1, groups_per_step=1, max_running=1)
