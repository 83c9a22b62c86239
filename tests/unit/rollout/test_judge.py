"""A served model that grades: what it is shown, and what is made of all that it may answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from test_scorer import row, said, scorer

from engines.errors import TandemError
from rollout.config import RewardConfig
from rollout.rewards.registry import make_rewards
from rollout.types import Loss, Score

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def judge(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[RewardConfig]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with TestServer(app) as server:
        options = {"url": str(server.make_url("/v1")), "model": "big", "api_key_env": "JUDGE_KEY", "timeout_s": 0.5}
        yield RewardConfig(name="judge", options=options)


async def test_a_judge_is_shown_question_answer_and_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    seen: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        is_cat = "cat" in body["messages"][0]["content"]
        if is_cat:
            seen.append((request.headers["Authorization"], body))
        return web.json_response({"choices": [{"message": {"content": f"Score: {0.75 if is_cat else 'fine'}"}}]})

    async with judge(answer) as config, scorer(config) as it:
        good, bad = await it.score(row(answer="{dog}"), [said("a {cat}"), said("fish")])
    assert good == Score(0.75, {"judge": 0.75})
    assert isinstance(bad, Loss)
    assert bad.reason.startswith("reward 'judge' of row 'r17': the judge said no number")
    assert not bad.is_transient
    ((authorization, body),) = seen
    assert authorization == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("big", 0)
    (message,) = body["messages"]
    assert all(part in message["content"] for part in ("\ndo\n", "\n{dog}\n", "\na {cat}\n"))


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, '{"choices": [{"message": {"content": "8/10"}}]}', "no number from 0 to 1 but '8/10'"),
        (200, '{"choices": [{"message": {"content": "fine"}}]}', "no number from 0 to 1 but 'fine'"),
        (200, '{"choices": []}', "no chat completion"),
        (200, "x" * (1 << 21), "larger than"),
        (302, "", "HTTP 302"),
        (500, "", "HTTP 500"),
        (0, "", "did not answer within 0.5 s"),
    ],
)
async def test_what_goes_wrong_at_the_judge_is_no_score(
    status: int, body: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")

    async def answer(request: web.Request) -> web.Response:
        if not status:
            await asyncio.Event().wait()
        return web.Response(status=status, text=body)

    async with judge(answer) as config:
        why = await why_no_grade(config)
    assert why.startswith("the judge")
    assert reason in why
    assert "secret" not in why


async def test_a_judge_that_is_not_there_or_has_no_key_is_no_score() -> None:
    options = {"url": "http://127.0.0.1:1/v1", "model": "big"}
    assert "could not be asked" in await why_no_grade(RewardConfig(name="judge", options=options))
    no_key = RewardConfig(name="judge", options={**options, "api_key_env": "NO_SUCH_KEY"})
    assert "NO_SUCH_KEY" in await why_no_grade(no_key)


async def test_a_judge_that_is_away_is_no_fault_of_the_row() -> None:
    away = RewardConfig(name="judge", options={"url": "http://127.0.0.1:1/v1", "model": "big"})
    async with scorer(away) as it:
        (loss,) = await it.score(row(answer="dog"), [said("cat")])
    assert isinstance(loss, Loss)
    assert loss.is_transient, loss


@pytest.mark.parametrize(
    ("status", "is_transient"),
    [*((status, True) for status in (429, 502, 503, 504, 0)), *((status, False) for status in (400, 401, 404, 500))],
)
async def test_a_judge_that_is_busy_away_or_breaks_off_is_told_from_one_that_fails(
    status: int, is_transient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")

    async def answer(request: web.Request) -> web.Response:
        if not status:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=status or 200, text="as scripted")

    async with judge(answer) as hasty:
        patient = hasty.model_copy(update={"options": {**hasty.options, "timeout_s": 20.0}})
        async with scorer(patient) as it:
            (loss,) = await it.score(row(answer="dog"), [said("cat")])
    assert isinstance(loss, Loss)
    assert loss.is_transient == is_transient, loss
    assert (str(status) if status else "could not be asked") in loss.reason


async def why_no_grade(config: RewardConfig) -> str:
    (reward,) = make_rewards((config,))
    grade = reward(row(answer="dog"), said("cat"))
    assert not isinstance(grade, float)
    with pytest.raises(TandemError) as caught:
        await grade
    return caught.value.message
