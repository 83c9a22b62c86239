"""A guest's cap: within its bounds always, full without users, and such that users hardly notice it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.cap import REMEASURE_S, SETTLE_S, AdaptiveCap, CapState, Observation

SEEN = st.builds(Observation, st.none() | st.floats(0.001, 60), st.integers(0, 50))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 64), st.lists(st.tuples(SEEN, st.floats(0.1, 400)), max_size=80))
def test_the_cap_stays_within_its_bounds(max_running: int, seen: list[tuple[Observation, float]]) -> None:
    cap, now_s = AdaptiveCap(max_running, 1.15), 0.0
    for observation, passed_s in seen:
        now_s += passed_s
        assert 0 <= cap.observe(observation, now_s) <= max_running
        if observation.num_requests == 0:
            assert cap.value == max_running


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 2.0), st.floats(0.005, 0.2), st.integers(4, 64))
def test_users_are_within_the_factor_most_of_the_time(idle_s: float, slope: float, max_running: int) -> None:
    cap, num_over, caps = AdaptiveCap(max_running, 1.15), 0, []
    for second in range(1000):
        p95_s = idle_s * (1 + slope * cap.value)
        num_over += p95_s > 1.15 * idle_s
        caps.append(cap.observe(Observation(p95_s, 20), float(second)))
    assert num_over < 0.3 * 1000
    if 1 + slope * max(1, max_running // 16) <= 1.15:
        assert sum(caps) > 0


@pytest.mark.timeout(5)
def test_harmless_training_gets_the_whole_cap() -> None:
    cap = AdaptiveCap(16, 1.15)
    for second in range(120):
        cap.observe(Observation(0.1, 20), float(second))
    assert cap.value == 16


@pytest.mark.timeout(5)
def test_users_who_come_back_pause_it_until_their_latency_alone_is_known() -> None:
    cap = AdaptiveCap(16, 1.15)
    assert cap.observe(Observation(None, 0), 0.0) == 16
    assert cap.observe(Observation(0.5, 3), 1.0) == 0
    assert cap.observe(Observation(0.5, 3), 1.0 + SETTLE_S / 2) == 0
    assert cap.observe(Observation(0.1, 3), 1.0 + SETTLE_S) == 1
    assert cap.baseline_s == 0.1


@pytest.mark.timeout(5)
def test_a_baseline_is_measured_anew_as_traffic_changes() -> None:
    cap = AdaptiveCap(16, 1.15)
    for second in range(int(SETTLE_S) + 2):
        cap.observe(Observation(0.1, 20), float(second))
    measured_s = SETTLE_S
    cap.observe(Observation(0.1, 20), measured_s + REMEASURE_S)
    assert (cap.state, cap.value) == (CapState.MEASURING, 0)
    cap.observe(Observation(0.4, 20), measured_s + REMEASURE_S + SETTLE_S)
    assert cap.baseline_s == 0.4


@pytest.mark.timeout(5)
def test_latency_that_stays_high_without_training_becomes_the_baseline() -> None:
    cap = AdaptiveCap(4, 1.15)
    for second in range(200):
        cap.observe(Observation(0.1 if second < 20 else 1.0, 20), float(second))
    assert cap.baseline_s == 1.0
    assert cap.value == 4
