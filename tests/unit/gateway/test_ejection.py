from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.ejection import Ejection, EjectionRule

RULE = EjectionRule(max_failures=3, base_s=1.0, max_s=60.0, clean_successes=10)
NAMES = ("small/0", "small/1", "small/2")
# What happened, to which replica, how long after what happened before, and how long before that it was asked.
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["fail", "unreachable", "succeed"]),
        st.sampled_from(NAMES),
        st.integers(0, 100),
        st.integers(0, 10),
    ),
    max_size=40,
)


def replay(events: list[tuple[str, str, int, int]]) -> tuple[Ejection, float]:
    ejection, now_s = Ejection(RULE), 0.0
    for kind, name, later_s, took_s in events:
        now_s += later_s
        if kind == "succeed":
            ejection.succeed(name, now_s - took_s)
        else:
            ejection.fail(name, now_s - took_s, now_s, unreachable=kind == "unreachable")
    return ejection, now_s


@given(EVENTS, st.sets(st.sampled_from(NAMES), min_size=1))
@settings(max_examples=100, deadline=None)
def test_somebody_can_always_be_asked_and_nobody_is_out_for_over_a_minute(
    events: list[tuple[str, str, int, int]], names: set[str]
) -> None:
    ejection, now_s = replay(events)
    left_s = {name: ejection.ejected_for_s(name, now_s) for name in names}
    assert all(0 <= seconds <= RULE.max_s for seconds in left_s.values())
    usable = ejection.usable(names, now_s)
    assert usable
    assert usable <= names
    if min(left_s.values()) == 0:
        assert usable == {name for name in names if left_s[name] == 0}
    else:
        assert len(usable) == 1
        assert left_s[next(iter(usable))] == min(left_s.values())
    assert ejection.usable(names, now_s + RULE.max_s) == names


@given(EVENTS, st.sampled_from(NAMES))
@settings(max_examples=100, deadline=None)
def test_enough_successes_or_another_process_make_the_next_ejection_a_first_one(
    events: list[tuple[str, str, int, int]], name: str
) -> None:
    for clear in (lambda e, at_s: [e.succeed(name, at_s) for _ in range(10)], lambda e, _: e.forget(name)):
        ejection, now_s = replay(events)
        later_s = now_s + RULE.max_s + 1
        clear(ejection, later_s)
        assert ejection.fail(name, later_s, later_s, unreachable=True)
        assert ejection.ejected_for_s(name, later_s) == RULE.base_s


def test_a_failed_connection_ejects_at_once_and_other_failures_after_three_in_a_row() -> None:
    ejection = Ejection(RULE)
    assert ejection.fail("a", 0, 0, unreachable=True)
    assert [ejection.fail("b", 0, 0) for _ in range(2)] == [False, False]
    ejection.succeed("b", 0)
    assert [ejection.fail("b", 0, 0) for _ in range(3)] == [False, False, True]
    assert ejection.ejected_for_s("a", 0.25) == ejection.ejected_for_s("b", 0.25) == 0.75
    assert ejection.usable(["a", "b", "c"], 0.25) == {"c"}


def test_each_ejection_is_twice_as_long_up_to_a_minute() -> None:
    ejection, now_s, seconds = Ejection(RULE), 0.0, []
    for _ in range(8):
        assert ejection.fail("a", now_s, now_s, unreachable=True)
        seconds.append(ejection.ejected_for_s("a", now_s))
        now_s += seconds[-1]
    assert seconds == [1, 2, 4, 8, 16, 32, 60, 60]


def test_after_its_return_one_more_failure_ejects_and_a_success_asks_for_three_again() -> None:
    ejection = Ejection(RULE)
    ejection.fail("a", 0, 0, unreachable=True)
    assert ejection.fail("a", 1, 1)
    assert ejection.ejected_for_s("a", 1) == 2
    ejection.succeed("a", 3)
    assert [ejection.fail("a", 3, 3) for _ in range(3)] == [False, False, True]
    assert ejection.ejected_for_s("a", 3) == 4


def test_the_hundred_streams_of_one_death_are_one_failure() -> None:
    ejection = Ejection(RULE)
    assert ejection.fail("a", 0, 5, unreachable=True)
    assert not any(ejection.fail("a", 4, 5 + number / 100) for number in range(100))
    assert not any(ejection.fail("a", 4, 7) for _ in range(100))
    assert ejection.ejected_for_s("a", 5) == 1


def test_the_hundredth_ejection_does_not_overflow() -> None:
    assert EjectionRule().duration_s(10_000) == 60
