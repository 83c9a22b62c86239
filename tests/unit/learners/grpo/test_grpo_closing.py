"""How a run ends is what it says, whatever goes wrong when what it sampled with is closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest
from scripted_workers import ScriptedWorker
from test_grpo_loop import HonestReplica, Job, of

from engines.errors import DeadlineExceeded, EngineFault
from learners.events import read_events
from learners.grpo.delivery import Delivery

if TYPE_CHECKING:
    from learners.data.collate import Encoder
    from learners.grpo.learner import Learner
    from learners.grpo.policy import StepTerms
    from rollout.types import Group

pytestmark = pytest.mark.timeout(100)


async def close_late(_: Delivery) -> None:
    raise DeadlineExceeded("the replica did not let go")


async def close_late_worker() -> None:
    raise DeadlineExceeded("the worker did not let go")


def test_what_cannot_be_closed_is_said_and_a_finished_run_has_succeeded(
    job: Callable[..., Job], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = ScriptedWorker(encoder)
    monkeypatch.setattr(worker, "close", close_late_worker)
    monkeypatch.setattr(Delivery, "close", close_late)
    events = job(max_steps=1).run(worker)
    assert [event.message for event in of(events, "not_closed")] == [
        "delivery: the replica did not let go",
        "workers: the worker did not let go",
    ]
    assert events[-1].type == "succeeded"


def test_what_cannot_be_closed_does_not_hide_why_a_run_failed(
    job: Callable[..., Job], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Delivery, "close", close_late)
    monkeypatch.setattr("learners.grpo.learner.Learner.learn", fail)
    made = job(max_steps=1)
    with pytest.raises(EngineFault, match="the learner cannot go on"):
        made.run(ScriptedWorker(encoder))
    assert of(list(read_events(made.config.job_path / "events.jsonl")), "failed")


def test_a_delivery_that_waits_for_its_replicas_does_not_hold_up_the_end_of_a_run_that_failed(
    job: Callable[..., Job], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from learners.grpo.learner import Learner

    replicas = (HonestReplica(0), HonestReplica(1))
    learn = Learner.learn
    steps = iter(("goes well, and both replicas go away", "fails"))

    def go_away_then_fail(learner: Learner, groups: Sequence[Group]) -> StepTerms:
        if next(steps) == "fails":
            fail()
        for replica in replicas:
            replica.is_down = True
        return learn(learner, groups)

    async def opened(*_: object) -> tuple[HonestReplica, ...]:
        return replicas

    monkeypatch.setattr(Learner, "learn", go_away_then_fail)
    monkeypatch.setattr("test_grpo_loop._opened", opened)
    made = job(max_steps=2)
    with pytest.raises(EngineFault, match="the learner cannot go on"):
        made.run(ScriptedWorker(encoder))
    events = list(read_events(made.config.job_path / "events.jsonl"))
    assert not of(events, "not_closed")


def fail(*_: object) -> StepTerms:
    raise EngineFault("the learner cannot go on")
