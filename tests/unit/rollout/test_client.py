from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_engine import (
    PROMPT_IDS,
    TOKEN,
    VERSION,
    Edit,
    ScriptedEngine,
    open_engine,
    said,
    status,
    with_choice,
    with_logprob,
    with_top,
)

from engines.errors import (
    BadRequest,
    DeadlineExceeded,
    EngineDown,
    EngineFault,
    OtherVersion,
    TandemError,
    Unavailable,
)
from engines.types import Endpoint
from rollout.chat import Question, to_body
from rollout.client import EngineClient
from rollout.messages import Message, Picture, Text
from rollout.types import FinishReason, Target

pytestmark = pytest.mark.timeout(20)
PNG = b"\x89PNG rest"
MESSAGES = (Message("user", (Text("before"), Picture(content=PNG), Text("after"))),)
QUESTION = Question("row-7", VERSION, MESSAGES, num_samples=2, temperature=0.7, max_new_tokens=5)


@pytest.fixture
async def client() -> AsyncIterator[EngineClient]:
    client = EngineClient(timeout_s=10.0)
    yield client
    await client.close()


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with open_engine() as engine:
        yield engine


async def test_answers_carry_the_engines_tokens_and_log_probabilities(
    client: EngineClient, engine: ScriptedEngine
) -> None:
    first, second = await client.ask(engine.target, QUESTION)
    assert first.prompt_ids == second.prompt_ids == tuple(PROMPT_IDS)
    assert (first.token_ids, second.token_ids) == ((100, 7), (101, 7))
    assert first.logprobs == (-0.25, -0.5)
    assert (first.text, first.finish, first.messages) == ("teal", FinishReason.STOP, MESSAGES)


async def test_a_request_says_all_that_decides_the_distribution(client: EngineClient, engine: ScriptedEngine) -> None:
    await client.ask(engine.target, QUESTION)
    (body,) = engine.bodies
    sampling = {key: body[key] for key in ("model", "n", "temperature", "max_completion_tokens")}
    assert sampling == {"model": str(VERSION), "n": 2, "temperature": 0.7, "max_completion_tokens": 5}
    off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    assert {key: body[key] for key in off} == off
    assert body["logprobs"] is True
    assert body["return_token_ids"] is True
    assert body["stream"] is False
    assert engine.headers[0]["Authorization"] == f"Bearer {TOKEN}"


async def test_each_request_has_an_id_of_its_own(client: EngineClient, engine: ScriptedEngine) -> None:
    for _ in range(2):
        await client.ask(engine.target, QUESTION)
    assert len({headers["X-Request-Id"] for headers in engine.headers}) == 2


async def test_users_and_probes_go_before_rollouts(client: EngineClient, engine: ScriptedEngine) -> None:
    await client.ask(engine.target, QUESTION)
    assert engine.bodies[0]["priority"] > 0


async def test_content_parts_keep_their_order(client: EngineClient, engine: ScriptedEngine) -> None:
    await client.ask(engine.target, QUESTION)
    content = engine.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text"]
    assert content[1]["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


async def test_an_image_that_is_gone_is_an_error_that_names_the_prompt(
    client: EngineClient, engine: ScriptedEngine, tmp_path: Path
) -> None:
    gone = replace(QUESTION, messages=(Message("user", (Picture(tmp_path / "gone.png"),)),))
    with pytest.raises(BadRequest, match=r"row-7.*gone\.png"):
        await client.ask(engine.target, gone)
    assert not engine.bodies


FAULTS: dict[str, tuple[Edit, type[TandemError], str]] = {
    "another version": (with_top(model="grpo.1.step@2"), OtherVersion, r"step@3 and answered as 'grpo\.1\.step@2'"),
    "no prompt ids": (with_top(prompt_token_ids=None), EngineFault, "prompt_token_ids"),
    "no choices": (with_top(choices=[]), EngineFault, "choices"),
    "no token ids": (with_choice(token_ids=None), EngineFault, "token_ids"),
    "no tokens": (with_choice(token_ids=[], logprobs=None), EngineFault, "not one sampled token"),
    "short log-probabilities": (with_choice(token_ids=[1, 2, 3]), EngineFault, "2 log-probabilities for 3 tokens"),
    "no log-probabilities": (with_choice(logprobs=None), EngineFault, "0 log-probabilities for 2 tokens"),
    "NaN": (with_logprob(math.nan), EngineFault, "log-probability nan of sampled token 1"),
    "null": (with_logprob(None), EngineFault, "log-probability nan of sampled token 1"),
    "minus infinity": (with_logprob(-math.inf), EngineFault, "log-probability -inf"),
    "clamped": (with_logprob(-9999.0), EngineFault, r"log-probability -9999\.0"),
    "finish reason": (with_choice(finish_reason="tool_calls"), EngineFault, "tool_calls"),
    "400": (status(400), BadRequest, r"refuses prompt row-7.*as scripted"),
    "413": (status(413), BadRequest, "row-7"),
    "401": (status(401), Unavailable, "token"),
    "404": (status(404), Unavailable, r"does not hold grpo\.1\.step@3"),
    "429": (status(429), Unavailable, "429"),
    "500": (status(500), EngineFault, "500"),
    "503": (status(503), Unavailable, "503"),
    "418": (status(418), EngineFault, "418"),
    "reset": (said("reset"), EngineDown, "went away"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_cannot_be_used_is_an_error_that_names_the_replica(
    client: EngineClient, engine: ScriptedEngine, fault: str
) -> None:
    edit, kind, words = FAULTS[fault]
    engine.edits = [edit]
    with pytest.raises(kind, match=words) as caught:
        await client.ask(engine.target, QUESTION)
    assert engine.name in caught.value.message


async def test_more_answers_than_asked_for_are_an_error(client: EngineClient, engine: ScriptedEngine) -> None:
    def double(answer: dict[str, Any]) -> None:
        answer["choices"] *= 2

    engine.edits = [double]
    with pytest.raises(EngineFault, match="4 choices where 2"):
        await client.ask(engine.target, QUESTION)


async def test_what_is_no_json_is_an_error(client: EngineClient, engine: ScriptedEngine) -> None:
    engine.edits = [lambda answer: answer.clear()]
    with pytest.raises(EngineFault, match=r"no chat completion: model: Field required"):
        await client.ask(engine.target, QUESTION)


async def test_an_aborted_answer_may_be_empty(client: EngineClient, engine: ScriptedEngine) -> None:
    engine.edits = [with_choice(finish_reason="abort", token_ids=[], logprobs=None)]
    first, _ = await client.ask(engine.target, QUESTION)
    assert first.finish is FinishReason.ABORT


async def test_nobody_listening_is_an_engine_that_is_down(client: EngineClient, engine: ScriptedEngine) -> None:
    nobody = Target("small/1", Endpoint("http://127.0.0.1:9", TOKEN))
    with pytest.raises(EngineDown, match="small/1"):
        await client.ask(nobody, QUESTION)


async def test_a_silent_engine_is_given_up_after_the_deadline_and_its_work_aborted(engine: ScriptedEngine) -> None:
    engine.always = said("hang")
    client = EngineClient(timeout_s=0.2)
    try:
        with pytest.raises(DeadlineExceeded, match=r"small/0 .*row-7 within 0\.2 s"):
            await client.ask(engine.target, QUESTION)
        await engine.aborted.wait()
    finally:
        await client.close()


async def test_cancelling_aborts_the_engines_work(client: EngineClient, engine: ScriptedEngine) -> None:
    engine.always = said("hang")
    asking = asyncio.create_task(client.ask(engine.target, QUESTION))
    await engine.hanging.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await engine.aborted.wait()


async def test_it_can_be_closed_twice_and_asks_again(client: EngineClient, engine: ScriptedEngine) -> None:
    for _ in range(2):
        assert len(await client.ask(engine.target, QUESTION)) == QUESTION.num_samples
        await client.close()
        await client.close()


def test_a_message_of_text_alone_is_a_string() -> None:
    question = replace(QUESTION, messages=(Message("user", (Text("a"), Text("b"))),))
    assert b'{"role": "user", "content": "ab"}' in to_body(question)
