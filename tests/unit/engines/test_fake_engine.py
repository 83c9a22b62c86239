"""The fake's process: faults on demand, a record of aborts, probes as a manifest says."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from pydantic import ValidationError
from tiny_adapter import write_adapter, write_manifested

from engines.adapter import BaseModel
from engines.config import EngineConfig
from engines.errors import AdapterRefused, EngineDown, EngineFault
from engines.fake import FakeEngine
from engines.fake.faults import Faults
from engines.fake.server import Pace
from engines.lifeline import group_members
from engines.types import AdapterRef, EngineState, ProbePrompt, VersionName
from engines.wire import ScoreBody

pytestmark = pytest.mark.timeout(60)


def fake(tmp_path: Path, start_timeout_s: float = 30, **args: Any) -> FakeEngine:
    config = EngineConfig(model=str(tmp_path), kind="fake", start_timeout_s=start_timeout_s, args=args)
    return FakeEngine("small", config, tmp_path / "logs")


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[FakeEngine]:
    served = fake(tmp_path)
    await served.start()
    yield served
    await served.stop()


def adapter_of(directory: Path) -> AdapterRef:
    return AdapterRef(VersionName("vqa", 1), 1, directory)


async def chat(engine: FakeEngine, http: aiohttp.ClientSession, request_id: str = "r") -> tuple[int, bytes]:
    body = {"model": "small@0", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {engine.endpoint.token}", "X-Request-Id": request_id}
    url = f"{engine.endpoint.url}/v1/chat/completions"
    async with http.post(url, json={**body, "stream": True}, headers=headers) as answer:
        return answer.status, await answer.read()


async def test_a_refused_load_leaves_nothing(engine: FakeEngine, tmp_path: Path) -> None:
    adapter = adapter_of(write_adapter(tmp_path / "adapter"))
    await engine.set_faults(Faults(load_fails=True))
    with pytest.raises(AdapterRefused, match="a fault was set"):
        await engine.load_adapter(adapter)
    assert await engine.list_adapters() == ()
    await engine.set_faults(Faults())
    assert "model.language_model.layers.0.self_attn.q_proj" in (await engine.load_adapter(adapter)).modules


async def test_chat_answers_the_status_that_was_set(engine: FakeEngine) -> None:
    await engine.set_faults(Faults(chat_status=500))
    async with aiohttp.ClientSession() as http:
        assert (await chat(engine, http))[0] == 500


async def whole(engine: FakeEngine, **fields: Any) -> dict[str, Any]:
    body = {"model": "small@0", "messages": [{"role": "user", "content": "hi"}], "logprobs": True, **fields}
    headers = {"Authorization": f"Bearer {engine.endpoint.token}"}
    url = f"{engine.endpoint.url}/v1/chat/completions"
    async with aiohttp.ClientSession() as http, http.post(url, json=body, headers=headers) as answer:
        said: dict[str, Any] = await answer.json()
        assert answer.status == 200, said
        return said


async def test_an_answer_names_the_version_that_was_set(engine: FakeEngine) -> None:
    await engine.set_faults(Faults(answer_as="grpo.1/step@3"))
    assert (await whole(engine))["model"] == "grpo.1/step@3"
    await engine.set_faults(Faults())
    assert (await whole(engine))["model"] == "small@0"


async def test_logprobs_are_null_where_nan_is_set(engine: FakeEngine) -> None:
    await engine.set_faults(Faults(logprobs_nan=True))
    entries = (await whole(engine))["choices"][0]["logprobs"]["content"]
    assert {entry["logprob"] for entry in entries} == {None}


async def test_every_choice_is_truncated_where_that_is_set(engine: FakeEngine) -> None:
    usual = await whole(engine, n=3, seed=1)
    assert {choice["finish_reason"] for choice in usual["choices"]} == {"stop"}
    await engine.set_faults(Faults(truncate=True))
    cut = await whole(engine, n=3, seed=1)
    assert [choice["finish_reason"] for choice in cut["choices"]] == ["length"] * 3


async def test_choice_i_is_what_seed_plus_i_says_alone(engine: FakeEngine) -> None:
    several = (await whole(engine, n=3, seed=7, return_token_ids=True))["choices"]
    alone = [(await whole(engine, seed=seed, return_token_ids=True))["choices"][0] for seed in (7, 8, 9)]
    assert [choice["token_ids"] for choice in several] == [choice["token_ids"] for choice in alone]
    assert len({tuple(choice["token_ids"]) for choice in several}) == 3


def test_token_times_are_log_normal_around_the_rate_and_repeat_by_seed() -> None:
    first, second = (Pace(50, 0.0, 0.5, random.Random(3)) for _ in range(2))
    times = sorted(first.token_s() for _ in range(501))
    assert times == sorted(second.token_s() for _ in range(501))
    assert 0.018 < times[250] < 0.022
    spread = statistics.stdev(math.log(time) for time in times)
    assert 0.4 < spread < 0.6
    assert Pace(50, 0.0).token_s() == 1 / 50


async def test_it_dies_in_mid_stream(engine: FakeEngine) -> None:
    group = engine.process.group
    await engine.set_faults(Faults(die_after_tokens=3))
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientError):
            await chat(engine, http)
    assert await asyncio.wait_for(engine.process.wait_exit(), 10) == 137
    assert (await engine.health()).state is EngineState.FAILED
    assert group_members(group) == ()


async def test_one_that_hangs_is_aborted_by_its_client_and_recorded(engine: FakeEngine) -> None:
    await engine.set_faults(Faults(hang_after_tokens=2))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.3)) as http:
        with pytest.raises(TimeoutError):
            await chat(engine, http, "the-hung-one")
    async with asyncio.timeout(5):
        while await engine.aborts() != ("the-hung-one",):  # noqa: ASYNC110  another process's state has no event
            await asyncio.sleep(0.02)
    assert (await engine.stats()).num_running == 0


async def test_a_slow_start_is_an_engine_down(tmp_path: Path) -> None:
    engine = fake(tmp_path, start_timeout_s=0.5, **{"start-delay-s": 30})
    with pytest.raises(EngineDown, match="did not answer within"):
        await engine.start()
    assert (await engine.health()).state is EngineState.FAILED
    assert group_members(engine.process.group) == ()
    with pytest.raises(EngineDown, match="is failed, not ready"):
        _ = engine.endpoint
    await engine.stop()


async def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    engine = fake(tmp_path, **{"start-delay-s": 30})
    starting = asyncio.create_task(engine.start())
    async with asyncio.timeout(10):
        while engine.state is not EngineState.STARTING or engine._process is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert group_members(engine.process.group) == ()


async def test_a_stop_that_was_cancelled_is_done_by_the_next(engine: FakeEngine) -> None:
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await engine.stop()
    assert engine.state is EngineState.STOPPED
    assert group_members(engine.process.group) == ()


async def test_two_stops_at_once_both_wait_for_the_end(engine: FakeEngine) -> None:
    group = engine.process.group

    async def stop() -> tuple[int, ...]:
        await engine.stop()
        return group_members(group)

    assert await asyncio.gather(stop(), stop()) == [(), ()]


async def test_a_stop_in_mid_start_ends_the_start(tmp_path: Path) -> None:
    engine = fake(tmp_path, **{"start-delay-s": 30})
    starting = asyncio.create_task(engine.start())
    async with asyncio.timeout(10):
        while engine._process is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await engine.stop()
    with pytest.raises(EngineDown, match="died while starting"):
        await starting
    assert engine.state is EngineState.STOPPED


async def test_the_token_is_not_told_to_another_server_on_our_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    async def listen(request: web.BaseRequest) -> web.StreamResponse:
        heard.append(request.path)
        return web.Response()

    runner = web.ServerRunner(web.Server(listen))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr("engines.served.free_port", lambda: runner.addresses[0][1])
    with pytest.raises(EngineDown, match="died while starting"):
        await fake(tmp_path).start()
    await runner.cleanup()
    assert heard == []


async def test_what_a_server_says_beyond_our_words_is_no_part_of_a_message(engine: FakeEngine) -> None:
    await engine.set_faults(Faults(replies_lost=True))
    with pytest.raises(EngineFault) as caught:
        await engine.drop_adapter(adapter_of(Path()))
    assert caught.value.detail == "the reply was lost"
    assert "lost" not in caught.value.message
    assert str(engine.log_path) in caught.value.message


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_scores_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(ValidationError):
        ScoreBody(token_ids=[1], logprobs=[value])


async def test_a_probe_answers_as_the_manifest_says(engine: FakeEngine, tmp_path: Path, base: BaseModel) -> None:
    record = {
        "text": "q", "answer": "a", "image": None, "num_tokens": 2, "token_ids": [5, 6],
        "base_logprobs": [-2.0, -1.0], "adapter_logprobs": [-0.5, -0.25],
    }  # fmt: skip
    adapter = adapter_of(write_manifested(tmp_path / "adapter", base, probe=[record]))
    await engine.load_adapter(adapter)
    prompt = (ProbePrompt("q", "a", None, 2),)
    (bare,) = await engine.probe(engine.base, prompt)
    (ours,) = await engine.probe(adapter.version, prompt)
    assert (bare.token_ids, bare.logprobs) == ((5, 6), (-2.0, -1.0))
    assert (ours.token_ids, ours.logprobs) == ((5, 6), (-0.5, -0.25))
    with pytest.raises(EngineFault, match=r"scored \[2\] tokens where the probe asked for \[3\]"):
        await engine.probe(engine.base, (ProbePrompt("q", "a", None, 3),))


async def test_tokens_come_at_the_set_rate(tmp_path: Path) -> None:
    engine = fake(tmp_path, **{"tokens-per-s": 100, "first-token-delay-s": 0.1})
    await engine.start()
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession() as http:
        began_s = loop.time()
        _, raw = await chat(engine, http)
    assert 0.3 <= loop.time() - began_s < 2
    assert raw.count(b'"content"') == 21
    await engine.stop()
