from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from learners.schedule import build_schedule


@given(st.integers(1, 60), st.integers(1, 17), st.integers(1, 4), st.integers(0, 5))
def test_every_epoch_uses_each_example_exactly_once(num: int, batch_size: int, epochs: int, seed: int) -> None:
    schedule = build_schedule(num, batch_size=batch_size, epochs=epochs, max_steps=None, seed=seed)
    for epoch in range(epochs):
        assert sorted(schedule.order[epoch * num : (epoch + 1) * num]) == list(range(num))
    assert len(schedule.order) == epochs * num
    assert (schedule.num_steps - 1) * batch_size < epochs * num <= schedule.num_steps * batch_size


@given(st.integers(1, 60), st.integers(1, 17), st.integers(1, 40))
def test_max_steps_takes_that_many_full_steps(num: int, batch_size: int, max_steps: int) -> None:
    schedule = build_schedule(num, batch_size=batch_size, epochs=None, max_steps=max_steps, seed=0)
    assert schedule.num_steps == max_steps
    uses = Counter(schedule.order)
    assert max(uses.values()) - min(uses[index] for index in range(num)) <= 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = build_schedule(50, batch_size=4, epochs=2, max_steps=None, seed=1)
    assert first == build_schedule(50, batch_size=4, epochs=2, max_steps=None, seed=1)
    assert first.order != build_schedule(50, batch_size=4, epochs=2, max_steps=None, seed=2).order
    assert first.order[:50] != first.order[50:]
