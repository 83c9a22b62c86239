"""Each position of the schedule is used exactly once, whatever fails in between."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import Internal
from rollout.prompt_queue import PromptQueue


@settings(max_examples=50, deadline=None)
@given(size=st.integers(0, 20), data=st.data())
def test_every_position_is_consumed_exactly_once_over_failures_and_restarts(size: int, data: st.DataObject) -> None:
    order = tuple(range(100, 100 + size))
    queue = PromptQueue(order)
    out: list[int] = []
    consumed: list[int] = []
    for action in data.draw(st.lists(st.sampled_from(["next", "back", "consume", "restart"]), max_size=80)):
        if action == "next":
            position = queue.next()
            out += [] if position is None else [position]
        elif action == "restart":
            queue = PromptQueue(order, queue.snapshot().positions())
            out = []
        elif out:
            position = out.pop(data.draw(st.integers(0, len(out) - 1)))
            queue.give_back(position) if action == "back" else queue.consume(position)
            consumed += [position] if action == "consume" else []
    for position in out:
        queue.give_back(position)
    while (position := queue.next()) is not None:
        queue.consume(position)
        consumed.append(position)
    assert sorted(consumed) == list(range(size))
    assert queue.num_left == 0
    assert queue.snapshot().low == size


@pytest.mark.timeout(5)
def test_what_is_given_back_comes_before_what_is_later() -> None:
    queue = PromptQueue((7, 8, 9))
    first = queue.next()
    assert first == 0
    queue.next()
    queue.give_back(0)
    assert queue.next() == 0
    assert queue.row(0) == 7


@pytest.mark.timeout(5)
def test_a_snapshot_is_short() -> None:
    queue = PromptQueue(range(6))
    for _ in range(5):
        queue.next()
    for position in (0, 1, 4):
        queue.consume(position)
    assert (queue.snapshot().low, queue.snapshot().above) == (2, (4,))


@pytest.mark.timeout(5)
def test_a_position_that_comes_back_twice_is_a_defect() -> None:
    queue = PromptQueue(range(2))
    queue.next()
    queue.consume(0)
    with pytest.raises(Internal):
        queue.give_back(0)
    with pytest.raises(Internal):
        queue.claim(0)
