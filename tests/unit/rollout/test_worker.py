from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from scripted_engine import VERSION, open_engine, said, task, without_choices

from engines.errors import BadRequest, DeadlineExceeded
from rollout.config import RewardConfig, RolloutConfig
from rollout.worker import RolloutWorker

pytestmark = pytest.mark.timeout(30)
EXACT = RewardConfig(name="exact_match")


@asynccontextmanager
async def open_worker(*rewards: RewardConfig, **settings: Any) -> AsyncIterator[RolloutWorker]:
    worker = RolloutWorker(RolloutConfig(engine="small", **settings), rewards or (EXACT,))
    try:
        yield worker
    finally:
        await worker.close()


async def test_a_group_is_scored_by_the_rows_answer() -> None:
    async with open_engine(texts=["teal", "cyan"]) as engine, open_worker() as worker:
        group = await worker.sample(task(engine.target))
    assert [(each.text, score.total) for each, score in zip(group.trajectories, group.scores, strict=True)] == [
        ("teal", 1.0), ("cyan", 0.0), ("teal", 1.0), ("cyan", 0.0),
    ]  # fmt: skip
    assert (group.version, group.num_lost, group.by_replica) == (VERSION, 0, {"small/0": 4})
    assert group.seconds > 0


async def test_lost_members_are_counted_with_their_reasons() -> None:
    async with open_engine(edits=[without_choices(3)]) as engine, open_worker(max_retries=0) as worker:
        group = await worker.sample(task(engine.target))
    assert (len(group.trajectories), len(group.scores), group.num_lost, len(group.losses)) == (3, 3, 1, 1)


async def test_a_member_without_a_score_is_lost_with_the_reason() -> None:
    no_such_column = RewardConfig(name="exact_match", options={"field": "label"})
    async with open_engine() as engine, open_worker(no_such_column) as worker:
        group = await worker.sample(task(engine.target, num_samples=2))
    assert (group.trajectories, group.scores, group.num_lost) == ((), (), 2)
    assert "label" in group.losses[0]


async def test_a_group_has_a_deadline_and_its_work_is_aborted() -> None:
    async with open_engine(always=said("hang")) as engine, open_worker(group_timeout_s=0.2) as worker:
        with pytest.raises(DeadlineExceeded, match=r"row-7.*within 0\.2 s"):
            await worker.sample(task(engine.target))
        await engine.aborted.wait()


@pytest.mark.parametrize("is_slow_to_sample", [False, True])
async def test_rewards_that_never_come_are_the_rows_fault_unless_sampling_took_the_time(
    monkeypatch: pytest.MonkeyPatch, is_slow_to_sample: bool
) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    edits = [said("hang")] if is_slow_to_sample else []
    async with open_engine(edits=edits) as engine, open_worker(group_timeout_s=1.0, request_timeout_s=0.6) as worker:
        monkeypatch.setattr(worker._scorer, "score", never)
        group = await worker.sample(task(engine.target, num_samples=2))
    assert (group.scores, group.num_lost) == ((), 2)
    assert group.num_transient == (2 if is_slow_to_sample else 0)
    assert "row-7 was not scored" in group.losses[0]


async def test_an_evaluation_is_one_greedy_answer() -> None:
    async with open_engine() as engine, open_worker() as worker:
        group = await worker.evaluate(task(engine.target))
    assert [score.total for score in group.scores] == [1.0]
    assert [(body["n"], body["temperature"]) for body in engine.bodies] == [(1, 0.0)]


def test_an_environment_that_there_is_not_is_refused_at_once() -> None:
    with pytest.raises(BadRequest, match="chess"):
        RolloutWorker(RolloutConfig(engine="small", environment="chess"), (EXACT,))
