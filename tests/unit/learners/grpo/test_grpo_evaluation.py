"""Evaluations between the steps: what is away is waited for, what hangs is left out, and both are said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scripted_workers import ScriptedWorker
from test_grpo_loop import Job, of

from engines.errors import Unavailable
from learners.checkpoint import list_checkpoints
from rollout.types import Group, Task

if TYPE_CHECKING:
    from learners.data.collate import Encoder

pytestmark = pytest.mark.timeout(60)
NUM_ROWS = 8
CAP = 3


class AwayAtEvaluation(ScriptedWorker):
    """Its engine is away at the first `num_away` rows of evaluations: in turn it fails, or its sample is lost."""

    def __init__(self, encoder: Encoder, num_away: int) -> None:
        super().__init__(encoder)
        self._num_away = num_away

    async def evaluate(self, task: Task) -> Group:
        group = await super().evaluate(task)
        number = len(self.asked_to_evaluate)
        if number > self._num_away:
            return group
        if number % 2:
            raise Unavailable("the engine is away")
        return Group(task.prompt, task.version, (), (), 1, ("the engine is away",), num_transient=1)


class HangsAtEvaluation(ScriptedWorker):
    """Never answers the second row of an evaluation."""

    async def evaluate(self, task: Task) -> Group:
        if task.prompt.id == "2":
            await asyncio.Event().wait()
        return await super().evaluate(task)


class CountingWorker(ScriptedWorker):
    """`most`: rows of an evaluation that were asked at once."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self._num_asked = 0
        self.most = 0

    async def evaluate(self, task: Task) -> Group:
        self._num_asked += 1
        self.most = max(self.most, self._num_asked)
        for _ in range(2 * NUM_ROWS):  # lets all others that may begin
            await asyncio.sleep(0)
        self._num_asked -= 1
        return await super().evaluate(task)


class ScriptedCap:
    """Falls to `value` as soon as a worker was asked for a group."""

    def __init__(self, worker: ScriptedWorker, value: int) -> None:
        self._worker = worker
        self._value = value

    @property
    def value(self) -> float:
        return float(self._value if self._worker.asked_rows else NUM_ROWS)

    def observe(self, *_: object) -> float:
        return self.value


@pytest.fixture
def held_out(tmp_path: Path) -> Callable[[int], str]:
    def write(num_rows: int) -> str:
        file = tmp_path / "held_out.jsonl"
        rows = ({"text": f"is it new {n}?", "answer": "yes"} for n in range(num_rows))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


def test_an_evaluation_waits_for_an_engine_that_was_away_and_says_so(
    job: Callable[..., Job], encoder: Encoder, held_out: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learners.grpo.rollouts.ASK_AGAIN_S", 0.01)
    made = job(eval_data=held_out(4), max_steps=1)
    worker = AwayAtEvaluation(encoder, num_away=6)
    events = made.run(worker)
    (interrupted,) = of(events, "evaluation_interrupted")
    assert "4 rows of eval_data are asked again: the engine is away" in interrupted.message
    scored = [(event.data["num_scored"], event.data["num_asked"]) for event in of(events, "evaluation")]
    assert scored == [(4, 4), (4, 4)]
    assert len(worker.asked_to_evaluate) == 6 + 4 + 4


def test_a_row_that_hangs_costs_an_evaluation_this_row_and_not_the_run(
    job: Callable[..., Job], encoder: Encoder, held_out: Callable[[int], str]
) -> None:
    rollout = {"engine": "small", "max_running": 4, "group_timeout_s": 0.5}
    made = job(eval_data=held_out(4), max_steps=1, rollout=rollout)
    events = made.run(HangsAtEvaluation(encoder))
    assert of(events, "evaluation_interrupted")[-1].data["num_left"] == 1
    for evaluation in of(events, "evaluation"):
        assert (evaluation.data["num_scored"], evaluation.data["num_asked"]) == (3, 4)
    assert [one.step for one in list_checkpoints(made.config.job_path / "checkpoints")] == [0, 1]


@pytest.mark.parametrize("cap", [0, CAP])
def test_a_guests_evaluation_asks_no_more_at_once_than_its_cap_and_at_least_one(
    job: Callable[..., Job],
    encoder: Encoder,
    held_out: Callable[[int], str],
    monkeypatch: pytest.MonkeyPatch,
    cap: int,
) -> None:
    worker = CountingWorker(encoder)
    monkeypatch.setattr("learners.grpo.opening.AdaptiveCap", lambda *_: ScriptedCap(worker, cap))
    rollout = {"engine": "small", "max_running": NUM_ROWS}
    job(eval_data=held_out(NUM_ROWS), max_steps=1, rollout=rollout).run(worker)
    assert worker.most == max(cap, 1)


def test_an_evaluation_asks_no_more_at_once_than_the_job_samples(
    job: Callable[..., Job], encoder: Encoder, held_out: Callable[[int], str]
) -> None:
    worker = CountingWorker(encoder)
    rollout = {"own": {"model": "m", "max_loras": 3, "reserved_for_rollout": 3}, "max_running": 2}
    job(eval_data=held_out(NUM_ROWS), max_steps=1, rollout=rollout).run(worker)
    assert worker.most == 2
