"""Peers that are there and never answer (a worker, its actor, the reward process): none hangs the rest."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from scripted_engine import task
from test_pump import TARGETS, FakeWorker, Hang, good, version

from engines.errors import DeadlineExceeded, Unavailable
from rollout.config import RewardConfig, RolloutConfig
from rollout.pump import Plan, Pump
from rollout.rewards import Scorer
from rollout.rewards.process import RewardProcess
from rollout.types import FinishReason, Loss, Prompt, Trajectory, Turn
from rollout.worker import RayWorker

pytestmark = pytest.mark.timeout(60)
EXACT = (RewardConfig(name="exact_match"),)
HASTY = RolloutConfig(engine="small", max_running=4, group_timeout_s=0.1, max_attempts=1)
YES = Trajectory((Turn((), (1,), (2,), (-0.1,), "yes", FinishReason.STOP),))


def test_the_groups_of_a_worker_that_never_answers_are_sampled_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.flow.SAMPLE_MARGIN_S", 0.0)
    silent, answers = FakeWorker(lambda task: Hang()), FakeWorker(good)
    plan = Plan([Prompt(f"row {n}", ()) for n in range(4)], range(4), 2, groups_per_step=4, max_staleness=0)
    pump = Pump((silent, answers), plan, HASTY)
    pump.start()
    try:
        pump.use(version(1), TARGETS)
        taken = pump.take(4, 30.0)
        assert silent.asked
        assert sorted(taken.positions) == [0, 1, 2, 3]
        assert pump.stats().given_up == ()
    finally:
        pump.stop()


class SilentMethod:
    def remote(self, *_: object) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


class SilentActor:
    sample = evaluate = close = SilentMethod()


async def test_every_call_of_an_actor_that_never_answers_ends_and_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[object] = []
    monkeypatch.setattr(RayWorker, "_make", lambda self: SilentActor())
    monkeypatch.setattr("ray.cancel", cancelled.append)
    monkeypatch.setattr("ray.kill", lambda actor: None)
    monkeypatch.setattr("rollout.worker.CALL_MARGIN_S", 0.0)
    monkeypatch.setattr("rollout.worker.CLOSE_TIMEOUT_S", 0.05)
    worker = RayWorker(0, HASTY, EXACT)
    for call in (worker.sample, worker.evaluate):
        with pytest.raises(DeadlineExceeded, match="rollout worker 0 did not answer"):
            await call(task(num_samples=1))
    await worker.close()
    assert len(cancelled) == 3


async def test_a_reward_process_that_stands_still_costs_its_trajectory_and_another_takes_its_place() -> None:
    scorer = Scorer(EXACT, timeout_s=2.0)
    try:
        await scorer.start()
        assert scorer._child is not None
        os.kill(scorer._child.pid, signal.SIGSTOP)
        (loss,) = await scorer.score(Prompt("r17", (), {"answer": "yes"}), [YES])
        assert isinstance(loss, Loss)
        assert "did not end within 2 s" in loss.reason
        await scorer.start()
        assert scorer.num_restarts == 1
    finally:
        await scorer.close()


async def test_a_reward_process_that_never_gets_ready_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.rewards.process.START_TIMEOUT_S", 0.01)
    with pytest.raises(Unavailable, match="was not ready within"):
        await RewardProcess.start(EXACT, 1.0)
