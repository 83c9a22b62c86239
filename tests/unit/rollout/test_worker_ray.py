"""Workers in Ray actors: what they answer, and what happens when one dies or hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from scripted_engine import open_engine, said, task

from engines.errors import BadRequest, DeadlineExceeded, Unavailable
from rollout.config import RewardConfig, RolloutConfig
from rollout.worker import RayWorker, start_workers

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(120)]
EXACT = (RewardConfig(name="exact_match"),)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@asynccontextmanager
async def open_worker(**settings: Any) -> AsyncIterator[RayWorker]:
    (worker,) = start_workers(RolloutConfig(engine="small", **settings), EXACT)
    try:
        yield worker
    finally:
        await worker.close()


async def test_a_worker_samples_and_evaluates() -> None:
    async with open_engine() as engine, open_worker() as worker:
        group = await worker.sample(task(engine.target))
        best = await worker.evaluate(task(engine.target))
    assert [score.total for score in group.scores] == [1.0] * 4
    assert [score.total for score in best.scores] == [1.0]


async def test_its_errors_arrive_as_what_they_are() -> None:
    async with open_engine(always=said("hang")) as engine, open_worker(group_timeout_s=0.2) as worker:
        with pytest.raises(DeadlineExceeded, match="row-7"):
            await worker.sample(task(engine.target))


async def test_cancelling_a_call_aborts_the_engines_work() -> None:
    async with open_engine(always=said("hang")) as engine, open_worker() as worker:
        sampling = asyncio.create_task(worker.sample(task(engine.target)))
        await engine.hanging.wait()
        sampling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sampling
        await engine.aborted.wait()


async def test_a_dead_worker_is_unavailable_and_revives_once() -> None:
    import ray

    async with open_engine(always=said("hang")) as engine, open_worker() as worker:
        sampling = [asyncio.create_task(worker.sample(task(engine.target))) for _ in range(2)]
        await engine.hanging.wait()
        await worker.revive()  # it lives: nothing happens
        assert not any(each.done() for each in sampling)
        ray.kill(worker._actor)
        for each in sampling:
            with pytest.raises(Unavailable, match="rollout worker 0 is gone"):
                await each
        engine.always = lambda answer: None
        await asyncio.gather(worker.revive(), worker.revive())
        assert len((await worker.sample(task(engine.target))).trajectories) == 4


def test_a_bad_configuration_is_refused_before_an_actor_is_made() -> None:
    with pytest.raises(BadRequest, match="chess"):
        start_workers(RolloutConfig(engine="small", environment="chess"), EXACT)
    with pytest.raises(BadRequest, match="no_such"):
        start_workers(RolloutConfig(engine="small"), (RewardConfig(name="no_such"),))
