"""A guest's cap: within its bounds always, full without users, and such that users hardly notice it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.cap import (
    PULSE_S,
    REMEASURE_S,
    SETTLE_S,
    SMALLEST,
    STEERED_TO,
    AdaptiveCap,
    CapState,
    Observation,
    at_once,
)

SECONDS = st.none() | st.floats(0.001, 60)
SEEN = st.builds(Observation, SECONDS, SECONDS, st.integers(0, 50))
ALONE = Observation(0.1, 0.01, 20)


def slower(by: float) -> Observation:
    return Observation(0.1 * by, 0.01 * by, 20)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 64), st.lists(st.tuples(SEEN, st.floats(0.1, 400)), max_size=80))
def test_the_cap_stays_within_its_bounds(max_running: int, seen: list[tuple[Observation, float]]) -> None:
    cap, now_s = AdaptiveCap(max_running, 1.15), 0.0
    for observation, passed_s in seen:
        now_s += passed_s
        assert 0 <= cap.observe(observation, now_s) <= max_running
        assert cap.value == 0 or cap.value >= SMALLEST
        if observation.num_requests == 0:
            assert cap.value == max_running


@settings(max_examples=15, deadline=None)
@given(st.floats(0.005, 0.2), st.integers(4, 64))
def test_users_are_within_the_factor_most_of_the_time(slope: float, max_running: int) -> None:
    cap, num_over, values = AdaptiveCap(max_running, 1.15), 0, []
    for second in range(1000):
        felt = 1 + slope * cap.value
        num_over += felt > 1.15
        values.append(cap.observe(slower(felt), float(second)))
    assert num_over < 0.1 * 1000
    assert sum(values) > 0


@pytest.mark.timeout(5)
def test_a_cap_is_used_up_to_more_than_half_of_what_it_is_steered_to() -> None:
    cap, values = AdaptiveCap(16, 1.15), []
    for second in range(1000):
        values.append(cap.observe(slower(1 + 0.05 * cap.value), float(second)))
    assert sum(values) / len(values) > 0.55 * STEERED_TO * 0.15 / 0.05


@pytest.mark.timeout(5)
@pytest.mark.parametrize("slope", [0.02, 0.1, 0.3, 1.0])
def test_a_cap_does_not_outrun_what_is_seen_eight_seconds_late(slope: float) -> None:
    cap, felt = AdaptiveCap(16, 1.15), [1.0] * 8
    for second in range(1000):
        cap.observe(slower(felt[-8]), float(second))
        felt.append(1 + slope * cap.value)
    assert max(felt) < 1 + 3 * 0.15


@pytest.mark.timeout(5)
@pytest.mark.parametrize("seen", [Observation(0.12, 0.01, 20), Observation(0.1, 0.012, 20)])
def test_first_tokens_and_those_after_count_alike(seen: Observation) -> None:
    cap = AdaptiveCap(16, 1.15)
    for second in range(40):
        cap.observe(ALONE, float(second))
    before = cap.value
    cap.observe(seen, 60.0)
    assert (cap.state, cap.value) == (CapState.CUT, before / 2)


@pytest.mark.timeout(5)
def test_harmless_training_gets_the_whole_cap() -> None:
    cap = AdaptiveCap(16, 1.15)
    for second in range(120):
        cap.observe(ALONE, float(second))
    assert cap.value == 16


@pytest.mark.timeout(5)
def test_where_users_may_feel_much_it_grows_sooner() -> None:
    cap = AdaptiveCap(8, 100.0)
    for second in range(int(SETTLE_S) + 26):
        cap.observe(ALONE, float(second))
    assert cap.value == 8


@pytest.mark.timeout(5)
def test_users_who_come_back_pause_it_until_their_latency_alone_is_known() -> None:
    cap = AdaptiveCap(16, 1.15)
    assert cap.observe(Observation(None, None, 0), 0.0) == 16
    assert cap.observe(slower(5.0), 1.0) == 0
    assert cap.observe(slower(5.0), 1.0 + SETTLE_S / 2) == 0
    assert 0 < cap.observe(ALONE, 1.0 + SETTLE_S) < 1
    assert cap.baseline == ALONE


@pytest.mark.timeout(5)
def test_a_baseline_is_measured_anew_as_traffic_changes() -> None:
    cap = AdaptiveCap(16, 1.15)
    for second in range(int(SETTLE_S) + 2):
        cap.observe(ALONE, float(second))
    measured_s = SETTLE_S
    cap.observe(ALONE, measured_s + REMEASURE_S)
    assert (cap.state, cap.value) == (CapState.MEASURING, 0)
    cap.observe(slower(4.0), measured_s + REMEASURE_S + SETTLE_S)
    assert cap.baseline == slower(4.0)


@pytest.mark.timeout(5)
def test_latency_that_stays_high_without_training_becomes_the_baseline() -> None:
    cap = AdaptiveCap(4, 1.15)
    for second in range(300):
        cap.observe(ALONE if second < 20 else slower(10.0), float(second))
    assert cap.baseline == slower(10.0)
    assert cap.value == 4


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 64), st.floats(0, 1e6))
def test_what_runs_over_time_is_the_cap(value: float, began_s: float) -> None:
    ticks = 64
    running = [at_once(value, began_s + PULSE_S * tick / ticks) for tick in range(ticks)]
    expected = value if value < 1 else int(value)
    assert abs(sum(running) / ticks - expected) <= 2 / ticks
