"""Whatever is away while a row is sampled is not counted against the row: only what it causes itself is."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from enum import StrEnum

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_pump import TARGETS, FakeWorker, Hang, good, version

from engines.errors import DeadlineExceeded, Unavailable
from rollout.config import RolloutConfig
from rollout.flow import Flow, Plan
from rollout.types import Group, Prompt, Task

pytestmark = pytest.mark.timeout(60)
MAX_ATTEMPTS = 2
CONFIG = RolloutConfig(engine="small", max_running=8, max_attempts=MAX_ATTEMPTS, min_group=2)
TAKE_TIMEOUT_S = 30.0


class Fate(StrEnum):
    """How one attempt at a row ends."""

    WORKER_GONE = "the worker is gone"
    WORKER_LATE = "the worker does not answer"
    OTHER_VERSION = "another version answers"
    ENGINE_AWAY = "no sample comes, as the engine is away"
    HALF_AWAY = "one sample comes, the other's engine is away"
    REFUSED = "the row is refused"
    HALF_SCORED = "one of its samples cannot be scored"

    @property
    def is_rows_fault(self) -> bool:
        return self in (Fate.REFUSED, Fate.HALF_SCORED)

    def answer(self, task: Task) -> Group | Exception:
        match self:
            case Fate.WORKER_GONE:
                return Unavailable(self)
            case Fate.WORKER_LATE:
                return DeadlineExceeded(self)
            case Fate.OTHER_VERSION:
                return replace(good(task), version=version(9))
            case Fate.ENGINE_AWAY:
                return replace(good(task, 0), num_transient=2)
            case Fate.HALF_AWAY:
                return replace(good(task, 1), num_transient=1)
            case Fate.REFUSED:
                return good(task, 0)
            case Fate.HALF_SCORED:
                return good(task, 1)


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers that failed are asked again at once."""
    monkeypatch.setattr("rollout.crew.FIRST_PAUSE_S", 0.0)
    return


async def end_of(fates: Mapping[str, list[Fate]]) -> tuple[list[str], tuple[str, ...]]:
    """The ids learned from, and those given up, once all are; a row whose fates are used up is good."""
    asked: Counter[str] = Counter()

    def answer(task: Task) -> Group | Exception:
        number = asked[task.prompt.id]
        asked[task.prompt.id] += 1
        ahead = fates[task.prompt.id]
        return ahead[number].answer(task) if number < len(ahead) else good(task)

    prompts = [Prompt(name, ()) for name in fates]
    plan = Plan(prompts, range(len(prompts)), group_size=2, groups_per_step=len(prompts), max_staleness=0)
    flow = Flow((FakeWorker(answer),), plan, CONFIG)
    running = asyncio.create_task(flow.run())
    try:
        flow.use(version(1), TARGETS)
        taken = await flow.take(len(prompts), TAKE_TIMEOUT_S)
        return [group.prompt.id for group in taken.groups], flow.stats().given_up
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(Fate), max_size=8), min_size=1, max_size=5))
def test_a_row_is_given_up_for_its_own_failures_alone_and_every_other_is_learned_from_once(
    fates: list[list[Fate]],
) -> None:
    by_row = {f"row {number}": ahead for number, ahead in enumerate(fates)}
    learned, given_up = asyncio.run(end_of(by_row))
    at_fault = {name for name, ahead in by_row.items() if sum(f.is_rows_fault for f in ahead) >= MAX_ATTEMPTS}
    assert set(given_up) == at_fault
    assert sorted([*learned, *given_up]) == sorted(by_row)


@pytest.mark.parametrize("fate", [fate for fate in Fate if not fate.is_rows_fault])
async def test_what_stays_away_ends_at_the_takers_deadline_with_the_reason_and_no_row_is_given_up(fate: Fate) -> None:
    said = await _said_at_the_deadline(lambda task: fate.answer(task))
    assert re.search("of 1 groups were there after .*prompt row 0", said)


async def test_a_worker_that_never_answers_ends_at_the_takers_deadline() -> None:
    assert "1 are being sampled" in await _said_at_the_deadline(lambda task: Hang())


async def _said_at_the_deadline(answer: Callable[[Task], Group | Exception | Hang]) -> str:
    """Why there was no group in time; no row is given up, none is learned from."""
    plan = Plan([Prompt("row 0", ())], range(1), group_size=2, groups_per_step=1, max_staleness=0)
    flow = Flow((FakeWorker(answer),), plan, CONFIG)
    running = asyncio.create_task(flow.run())
    try:
        flow.use(version(1), TARGETS)
        with pytest.raises(DeadlineExceeded) as caught:
            await flow.take(1, 0.3)
        assert flow.stats().given_up == ()
        assert flow.snapshot().queue.positions() == set()
        return str(caught.value)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
