"""The pump over workers in this process, whose answers the tests decide."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from engines.errors import DeadlineExceeded, EngineFault, Unavailable
from engines.types import Endpoint, VersionName
from rollout.config import RolloutConfig
from rollout.pump import Plan, Pump, PumpSnapshot
from rollout.types import FinishReason, Group, Prompt, Score, Target, Task, Trajectory, Turn

pytestmark = pytest.mark.timeout(20)
WAIT_S = 5.0
CONFIG = RolloutConfig(engine="small", max_running=4, max_attempts=2)
TARGETS = (Target("small/0", Endpoint("http://127.0.0.1:1", "secret")),)
TURN = Turn((), (1,), (2,), (-0.1,), "yes", FinishReason.STOP)


class Hang:
    """The answer that never comes."""


Answer = Group | Exception | Hang


class FakeWorker:
    """Answers as told; keeps what it was asked."""

    name = "fake worker"

    def __init__(self, answer: Callable[[Task], Answer]) -> None:
        self.answer = answer
        self.asked: list[Task] = []
        self.num_cancelled = 0
        self.num_revived = 0

    async def sample(self, task: Task) -> Group:
        self.asked.append(task)
        answer = self.answer(task)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Group):
            return answer
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        raise AssertionError

    async def evaluate(self, task: Task) -> Group:
        raise NotImplementedError

    async def revive(self) -> None:
        self.num_revived += 1

    async def close(self) -> None: ...


def good(task: Task, num_members: int = 2) -> Group:
    members = tuple(Trajectory((TURN,)) for _ in range(num_members))
    scores = tuple(Score(1.0, {"exact_match": 1.0}) for _ in members)
    lost = task.num_samples - num_members
    return Group(task.prompt, task.version, members, scores, lost, ("the engine is away",) * lost)


def version(number: int) -> VersionName:
    return VersionName("grpo.1/step", number)


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition never held"
        time.sleep(0.001)


Make = Callable[..., Pump]


@pytest.fixture
def make() -> Iterator[Make]:
    pumps: list[Pump] = []

    def build(
        *workers: FakeWorker,
        size: int = 8,
        per_step: int = 2,
        max_staleness: int = 1,
        first_step: int = 0,
        restored: PumpSnapshot | None = None,
        config: RolloutConfig = CONFIG,
    ) -> Pump:
        prompts = [Prompt(f"row {number}", ()) for number in range(size)]
        plan = Plan(prompts, range(size), 2, per_step, max_staleness, first_step=first_step)
        pump = Pump(workers, plan, config, restored)
        pumps.append(pump)
        pump.start()
        return pump

    yield build
    for pump in pumps:
        pump.stop()


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_every_prompt_is_learned_from_once_and_none_too_late(make: Make, max_staleness: int) -> None:
    pump = make(FakeWorker(good), FakeWorker(good), max_staleness=max_staleness)
    positions: list[int] = []
    for step in range(4):
        pump.use(version(step + 1), TARGETS)
        taken = pump.take(2, WAIT_S)
        assert all(0 <= step + 1 - group.version.number <= max_staleness for group in taken.groups)
        positions += taken.positions
        pump.learned()
    assert sorted(positions) == list(range(8))
    assert pump.take(2, WAIT_S).groups == ()
    assert pump.snapshot().queue.low == 8


def test_a_group_that_lost_too_many_is_sampled_again(make: Make) -> None:
    worker = FakeWorker(lambda task: good(task, 0 if len(worker.asked) == 1 else 2))
    pump = make(worker, size=1, per_step=1)
    pump.use(version(1), TARGETS)
    taken = pump.take(1, WAIT_S)
    assert len(taken.groups) == 1
    assert taken.dropped == ("prompt row 0: thin: 0 of 2 samples came: the engine is away",)
    assert len(worker.asked) == 2
    assert pump.stats().lost_samples == 2


def test_a_prompt_that_fails_always_is_given_up_by_name(make: Make) -> None:
    worker = FakeWorker(lambda task: good(task, 1 if task.prompt.id == "row 1" else 2))
    pump = make(worker, size=3, per_step=3)
    pump.use(version(1), TARGETS)
    taken = pump.take(3, WAIT_S)
    assert sorted(taken.positions) == [0, 2]
    assert pump.stats().given_up == ("row 1",)
    assert "given up after 2 attempts" in taken.dropped[-1]
    assert pump.snapshot().queue.low == 3


def test_a_worker_that_fails_rests_and_another_takes_its_prompts(make: Make) -> None:
    bad = FakeWorker(lambda task: Unavailable("the worker is gone"))
    pump = make(bad, FakeWorker(good), size=4, per_step=4)
    pump.use(version(1), TARGETS)
    assert sorted(pump.take(4, WAIT_S).positions) == [0, 1, 2, 3]
    assert len(bad.asked) <= 3
    assert pump.stats().dropped["failed"] == len(bad.asked)


def test_a_row_that_fails_by_its_own_fault_costs_its_worker_no_rest(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.crew.FIRST_PAUSE_S", 1000.0)
    worker = FakeWorker(lambda task: good(task, 0 if task.prompt.id == "row 0" else 2))
    pump = make(worker, size=4, per_step=4, config=CONFIG.model_copy(update={"max_running": 1}))
    pump.use(version(1), TARGETS)
    assert sorted(pump.take(4, WAIT_S).positions) == [1, 2, 3]
    assert pump.stats().given_up == ("row 0",)


def test_a_worker_whose_engines_are_away_rests(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.crew.FIRST_PAUSE_S", 1000.0)
    away = FakeWorker(lambda task: replace(good(task, 0), num_transient=2))
    pump = make(away, FakeWorker(good), size=8, per_step=8, config=CONFIG.model_copy(update={"max_running": 2}))
    pump.use(version(1), TARGETS)
    assert len(pump.take(8, WAIT_S).groups) == 8
    assert len(away.asked) == 1


def test_a_worker_that_failed_is_revived_before_it_is_asked_again(make: Make) -> None:
    worker = FakeWorker(lambda task: Unavailable("gone") if worker.num_revived == 0 else good(task))
    pump = make(worker, size=1, per_step=1)
    pump.use(version(1), TARGETS)
    assert pump.take(1, WAIT_S).positions == (0,)
    assert worker.num_revived == 1


def test_a_defect_of_a_worker_reaches_the_learner(make: Make) -> None:
    pump = make(FakeWorker(lambda task: EngineFault("an unknown shape")))
    pump.use(version(1), TARGETS)
    with pytest.raises(EngineFault, match="an unknown shape"):
        pump.take(2, WAIT_S)
    until(lambda: pump.stats().running == 0)


def test_who_waits_in_vain_hears_what_is_missing(make: Make) -> None:
    pump = make(FakeWorker(lambda task: Hang()))
    with pytest.raises(DeadlineExceeded, match=r"0 of 2 groups .* no version was delivered"):
        pump.take(2, 0.01)
    pump.use(version(1), ())
    with pytest.raises(DeadlineExceeded, match=r"no engine holds grpo\.1/step@1"):
        pump.take(2, 0.01)
    pump.use(version(1), TARGETS)
    until(lambda: pump.stats().running == 4)
    with pytest.raises(DeadlineExceeded, match="4 are being sampled"):
        pump.take(2, 0.01)


def test_a_running_group_that_can_only_come_too_late_is_cancelled_and_sampled_anew(make: Make) -> None:
    worker = FakeWorker(lambda task: Hang() if task.version.number == 1 and task.prompt.id == "row 0" else good(task))
    pump = make(worker, max_staleness=1)
    pump.use(version(1), TARGETS)
    assert 0 not in pump.take(2, WAIT_S).positions
    pump.learned()
    assert version(1) in pump.in_use()
    pump.use(version(2), TARGETS)
    pump.take(2, WAIT_S)
    pump.learned()
    until(lambda: worker.num_cancelled == 1)
    until(lambda: version(1) not in pump.in_use())
    pump.use(version(3), TARGETS)
    taken = pump.take(2, WAIT_S)
    assert any("row 0: grpo.1/step@1 was too old" in line for line in taken.dropped)
    until(lambda: any(task.prompt.id == "row 0" and task.version != version(1) for task in worker.asked))


def test_a_group_of_another_version_is_not_learned_from(make: Make) -> None:
    worker = FakeWorker(lambda task: good(task))
    other = Task(Prompt("row 0", ()), version(9), TARGETS, 2)
    worker.answer = lambda task: good(other) if len(worker.asked) == 1 else good(task)
    pump = make(worker, size=1, per_step=1)
    pump.use(version(1), TARGETS)
    taken = pump.take(1, WAIT_S)
    assert taken.groups[0].version == version(1)
    assert pump.stats().dropped == {"other_version": 1}


def test_a_cap_of_zero_starts_nothing_new(make: Make) -> None:
    worker = FakeWorker(good)
    pump = make(worker)
    pump.set_cap(0)
    pump.use(version(1), TARGETS)
    with pytest.raises(DeadlineExceeded):
        pump.take(2, 0.01)
    assert worker.asked == []
    pump.set_cap(1)
    assert len(pump.take(2, WAIT_S).groups) == 2


def test_a_restored_pump_goes_on_with_the_buffer_and_skips_what_was_used(make: Make) -> None:
    first = make(FakeWorker(good), max_staleness=1)
    first.use(version(1), TARGETS)
    used = first.take(2, WAIT_S).positions
    first.learned()
    until(lambda: first.stats().buffered == 2)
    snapshot = first.snapshot()
    worker = FakeWorker(good)
    second = make(worker, max_staleness=1, first_step=1, restored=snapshot)
    second.use(version(2), TARGETS)
    positions = list(used)
    for step in range(1, 4):
        positions += second.take(2, WAIT_S).positions
        second.learned()
        second.use(version(step + 2), TARGETS)
    assert sorted(positions) == list(range(8))
    assert len(worker.asked) == 4


def test_the_end_cancels_what_runs(make: Make) -> None:
    worker = FakeWorker(lambda task: Hang())
    pump = make(worker)
    pump.use(version(1), TARGETS)
    until(lambda: len(worker.asked) == 4)
    pump.stop()
    assert worker.num_cancelled == 4
    assert pump.stats().running == 0
    assert pump.stats().busy_s > 0
