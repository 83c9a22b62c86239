from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scripted_engine import (
    VERSION,
    open_engine,
    prompt,
    said,
    status,
    task,
    with_choice,
    with_logprob,
    with_top,
    without_choices,
)

from engines.errors import Unavailable
from engines.types import Endpoint
from rollout.client import EngineClient
from rollout.config import RolloutConfig
from rollout.environments import Environment, load_environment
from rollout.messages import Message, Text
from rollout.sampler import Sampler
from rollout.types import Prompt, Target, Task

pytestmark = pytest.mark.timeout(20)
NOBODY = Target("small/9", Endpoint("http://127.0.0.1:9", "secret"))


@pytest.fixture
async def client() -> AsyncIterator[EngineClient]:
    client = EngineClient(timeout_s=10.0)
    yield client
    await client.close()


def sampler(client: EngineClient, own: Environment | None = None, **settings: Any) -> Sampler:
    config = RolloutConfig(engine="small", **settings)
    environment = own or load_environment(config.environment, config.environment_options)
    return Sampler(client, environment, config, retry_delay_s=0.0)


async def test_single_turns_are_one_request(client: EngineClient) -> None:
    async with open_engine(texts=["a", "b", "c", "d"]) as engine:
        sampled = await sampler(client).sample(task(engine.target))
    assert [trajectory.text for trajectory in sampled.trajectories] == ["a", "b", "c", "d"]
    assert [body["n"] for body in engine.bodies] == [4]
    assert engine.bodies[0]["priority"] == 10
    assert (sampled.losses, sampled.by_replica) == ((), {"small/0": 4})


async def test_what_a_request_lacks_is_asked_for_one_by_one_elsewhere(client: EngineClient) -> None:
    async with open_engine("small/0", edits=[without_choices(1)]) as first, open_engine("small/1") as second:
        sampled = await sampler(client).sample(task(first.target, second.target))
    assert len(sampled.trajectories) == 4
    assert [body["n"] for body in second.bodies] == [1, 1, 1]
    assert sampled.by_replica == {"small/0": 1, "small/1": 3}


@pytest.mark.parametrize(
    "fault",
    [status(500), status(404), said("reset"), with_logprob(None), with_top(model="grpo.1.step@2")],
    ids=["500", "404", "reset", "NaN", "another version"],
)
async def test_a_replica_that_fails_is_made_up_for_by_another(client: EngineClient, fault: Any) -> None:
    async with open_engine("small/0", always=fault) as bad, open_engine("small/1") as good:
        sampled = await sampler(client).sample(task(bad.target, good.target))
    assert len(sampled.trajectories) == 4
    assert (sampled.losses, sampled.by_replica) == ((), {"small/1": 4})
    assert len(bad.bodies) == 1


async def test_what_nobody_answers_is_lost_with_the_reason_after_its_retries(client: EngineClient) -> None:
    async with open_engine("small/0", always=status(500)) as first, open_engine("small/1", always=status(503)) as other:
        sampled = await sampler(client, max_retries=2).sample(task(first.target, other.target, num_samples=2))
    assert sampled.trajectories == ()
    assert len(sampled.losses) == 2
    assert all("row-7" in loss.reason for loss in sampled.losses)
    assert first.bodies[0]["n"] == 2
    assert len(first.bodies) + len(other.bodies) == 1 + 2 * 2


@pytest.mark.parametrize(
    ("fault", "is_transient"),
    [
        (status(400), False),
        (status(500), False),
        (with_logprob(None), False),
        (status(404), True),
        (status(401), True),
        (status(429), True),
        (status(503), True),
        (said("reset"), True),
        (said("hang"), True),
        (with_choice(finish_reason="abort", token_ids=[], logprobs=None), True),
        (with_top(model="grpo.1.step@2"), True),
    ],
    ids=["400", "500", "NaN", "404", "401", "429", "503", "reset", "hang", "abort", "another version"],
)
async def test_what_is_away_is_told_from_what_the_row_is_the_cause_of(fault: Any, is_transient: bool) -> None:
    hasty = EngineClient(timeout_s=1.0)
    async with open_engine(always=fault) as engine:
        sampled = await sampler(hasty, max_retries=1).sample(task(engine.target, num_samples=1))
    await hasty.close()
    assert [loss.is_transient for loss in sampled.losses] == [is_transient]


async def test_one_failure_of_what_is_away_is_enough_to_clear_the_row(client: EngineClient) -> None:
    async with open_engine("small/0", always=status(500)) as faulty:
        for targets in ((NOBODY, faulty.target), (faulty.target, NOBODY)):
            sampled = await sampler(client, max_retries=1).sample(task(*targets, num_samples=1))
            assert [loss.is_transient for loss in sampled.losses] == [True]


async def test_another_versions_answer_stays_the_reason_whatever_fails_besides(client: EngineClient) -> None:
    other_version = with_top(model="grpo.1.step@2")
    async with open_engine("small/0", always=other_version) as other, open_engine("small/1", always=status(500)) as bad:
        for targets in ((other.target, bad.target), (bad.target, other.target)):
            sampled = await sampler(client, max_retries=1).sample(task(*targets, num_samples=1))
            (loss,) = sampled.losses
            assert (loss.is_other_version, loss.is_transient) == (True, True)
            assert "answered as 'grpo.1.step@2'" in loss.reason


async def test_a_replica_that_is_not_there_is_made_up_for(client: EngineClient) -> None:
    async with open_engine("small/0") as engine:
        sampled = await sampler(client).sample(task(NOBODY, engine.target))
    assert (sampled.losses, sampled.by_replica) == ((), {"small/0": 4})


async def test_no_retries_means_one_request(client: EngineClient) -> None:
    async with open_engine(edits=[without_choices(3)]) as engine:
        sampled = await sampler(client, max_retries=0).sample(task(engine.target))
    assert (len(sampled.trajectories), len(sampled.losses)) == (3, 1)
    assert "broke off" in sampled.losses[0].reason
    assert len(engine.bodies) == 1


async def test_an_answer_that_was_broken_off_is_asked_for_again(client: EngineClient) -> None:
    async with open_engine(edits=[with_choice(finish_reason="abort", token_ids=[], logprobs=None)]) as engine:
        sampled = await sampler(client).sample(task(engine.target))
    assert [body["n"] for body in engine.bodies] == [4, 1]
    assert len(sampled.trajectories) == 4


async def test_a_refused_prompt_is_not_asked_again(client: EngineClient) -> None:
    async with open_engine("small/0", always=status(400)) as engine, open_engine("small/1") as other:
        sampled = await sampler(client).sample(task(engine.target, other.target))
    assert len(sampled.losses) == 4
    assert "refuses prompt row-7" in sampled.losses[0].reason
    assert (len(engine.bodies), len(other.bodies)) == (1, 0)


async def test_tasks_go_to_who_is_asked_least(client: EngineClient) -> None:
    async with open_engine("small/0") as first, open_engine("small/1") as second:
        shared = sampler(client)
        await asyncio.gather(*(shared.sample(task(first.target, second.target)) for _ in range(6)))
    assert len(first.bodies) == len(second.bodies) == 3


async def test_without_replicas_all_is_lost(client: EngineClient) -> None:
    sampled = await sampler(client).sample(task(num_samples=3))
    assert len(sampled.losses) == 3
    assert "no replica" in sampled.losses[0].reason
    assert all(loss.is_transient for loss in sampled.losses)


async def test_greedy_asks_for_one_answer_at_temperature_0(client: EngineClient) -> None:
    async with open_engine() as engine:
        sampled = await sampler(client).sample(task(engine.target, num_samples=1), greedy=True)
    assert [(body["n"], body["temperature"]) for body in engine.bodies] == [(1, 0.0)]
    assert len(sampled.trajectories) == 1


async def test_a_second_turn_has_the_whole_conversation_and_its_own_tokens(client: EngineClient) -> None:
    async with open_engine(texts=["cyan", "teal"]) as engine:
        turns = sampler(client, environment="retry", environment_options={"text": "no"}, max_turns=3)
        sampled = await turns.sample(task(engine.target, num_samples=1))
    (trajectory,) = sampled.trajectories
    assert [turn.text for turn in trajectory.turns] == ["cyan", "teal"]
    assert [body["n"] for body in engine.bodies] == [1, 1]
    sent = [(message["role"], message["content"]) for message in engine.bodies[1]["messages"]]
    assert sent == [("user", "which colour?"), ("assistant", "cyan"), ("user", "no")]
    assert [message.role for message in trajectory.turns[1].messages] == ["user", "assistant", "user"]
    assert trajectory.num_tokens == 4


async def test_turns_end_at_the_bound(client: EngineClient) -> None:
    async with open_engine(texts=["cyan"]) as engine:
        sampled = await sampler(client, environment="retry", max_turns=3).sample(task(engine.target, num_samples=2))
    assert sampled.losses == ()
    assert [len(trajectory.turns) for trajectory in sampled.trajectories] == [3, 3]


async def test_a_turn_that_was_cut_off_is_the_last(client: EngineClient) -> None:
    async with open_engine(texts=["cyan"], always=with_choice(finish_reason="length")) as engine:
        sampled = await sampler(client, environment="retry", max_turns=3).sample(task(engine.target, num_samples=1))
    assert [len(trajectory.turns) for trajectory in sampled.trajectories] == [1]
    assert sampled.trajectories[0].is_truncated


async def test_a_trajectory_stays_on_its_replica_while_that_answers(client: EngineClient) -> None:
    async with open_engine("small/0", texts=["cyan"]) as first, open_engine("small/1", texts=["cyan"]) as second:
        turns = sampler(client, environment="retry", max_turns=4)
        sampled = await turns.sample(task(first.target, second.target, num_samples=2))
    assert sampled.by_replica == {"small/0": 1, "small/1": 1}
    assert (len(first.bodies), len(second.bodies)) == (4, 4)


async def test_a_turn_goes_on_elsewhere_when_its_replica_fails(client: EngineClient) -> None:
    lambdas = [lambda answer: None, status(500)]
    async with open_engine("small/0", texts=["cyan"], edits=lambdas) as first, open_engine("small/1") as second:
        turns = sampler(client, environment="retry", max_turns=2)
        sampled = await turns.sample(task(first.target, second.target, num_samples=1))
    assert [turn.text for turn in sampled.trajectories[0].turns] == ["cyan", "teal"]
    assert (len(first.bodies), sampled.by_replica) == (2, {"small/1": 1})


class Broken:
    """Fails where it is told to."""

    def __init__(self, at_start: bool) -> None:
        self._at_start = at_start

    def start(self, prompt: Prompt) -> tuple[Message, ...]:
        if self._at_start:
            raise KeyError("board")
        return prompt.messages

    async def reply(self, prompt: Prompt, messages: tuple[Message, ...], turn_number: int) -> tuple[Message, ...]:
        if messages[-1].text == "bad":
            raise ValueError("no such move")
        if messages[-1].text == "away":
            raise Unavailable("the game server is away")
        if messages[-1].text == "silent":
            await asyncio.Event().wait()
        return (Message("user", (Text("go on"),)),)


@pytest.mark.parametrize(
    ("at_start", "num_kept", "words"), [(True, 0, "KeyError: 'board'"), (False, 1, "no such move")]
)
async def test_an_environment_that_fails_loses_only_its_trajectory(
    client: EngineClient, at_start: bool, num_kept: int, words: str
) -> None:
    async with open_engine(texts=["bad", "good", "good"]) as engine:
        sampled = await sampler(client, Broken(at_start), max_turns=2).sample(task(engine.target, num_samples=2))
    assert len(sampled.trajectories) == num_kept
    assert len(sampled.losses) == 2 - num_kept
    assert words in sampled.losses[0].reason


@pytest.mark.parametrize(
    ("answer", "words", "is_transient"),
    [("silent", "did not reply within 0.1 s", False), ("away", "the game server is away", True)],
)
async def test_an_environment_that_does_not_reply_loses_only_its_trajectory(
    client: EngineClient, answer: str, words: str, is_transient: bool
) -> None:
    async with open_engine(texts=[answer, "good", "good"]) as engine:
        turns = sampler(client, Broken(False), max_turns=2, environment_timeout_s=0.1)
        sampled = await turns.sample(task(engine.target, num_samples=2))
    assert len(sampled.trajectories) == 1
    ((reason, transient),) = [(loss.reason, loss.is_transient) for loss in sampled.losses]
    assert words in reason
    assert transient == is_transient


async def test_cancelling_a_task_aborts_all_its_requests(client: EngineClient) -> None:
    async with open_engine(always=said("hang")) as engine:
        sampling = asyncio.create_task(sampler(client).sample(Task(prompt(), VERSION, (engine.target,), 2)))
        await engine.hanging.wait()
        sampling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sampling
        await engine.aborted.wait()
