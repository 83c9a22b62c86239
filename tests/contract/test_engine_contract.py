"""What every back end promises, asked of a running server of each kind. Order matters once: the last test kills it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from chatting import ask, ask_streaming, eventually, hang_up_after_first_token, picture, request, session, status_of
from peft_adapters import MAX_LORAS, MakeAdapter

from engines.errors import AdapterRefused, Conflict, EngineDown, NoSlot, NotFound
from engines.lifeline import group_members
from engines.served import ServedEngine
from engines.types import MAX_PROBE_PROMPTS, AdapterRef, EngineState, ProbePrompt, VersionName

pytestmark = pytest.mark.timeout(300)

BASE = "small@0"
QUESTION = "what color is the shape?"
LONG_QUESTION = "is there a red circle in the image? " * 20
WHOLE_CONTEXT_TOKENS = 900
OPENING_TOKENS = 16


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def nothing_left_loaded(engine: ServedEngine) -> AsyncIterator[None]:
    yield
    if engine.state is EngineState.READY:
        for held in await engine.list_adapters():
            await engine.drop_adapter(AdapterRef(held.version, held.slot_id, Path()))
        assert await engine.list_adapters() == ()


async def test_base_answers_under_its_version_and_the_callers_request_id(engine: ServedEngine) -> None:
    said = await ask(engine.endpoint, request(BASE, QUESTION), **{"X-Request-Id": "0190-abc"})
    assert said.body["id"] == "chatcmpl-0190-abc"
    assert said.body["model"] == BASE
    assert said.body["usage"]["completion_tokens"] == len(said.logprobs) > 0


async def test_greedy_answers_repeat(engine: ServedEngine) -> None:
    first, second = [await ask(engine.endpoint, request(BASE, QUESTION)) for _ in range(2)]
    assert first.text == second.text


async def test_stream_says_what_the_whole_answer_says(engine: ServedEngine) -> None:
    whole = await ask(engine.endpoint, request(BASE, QUESTION))
    text, events = await ask_streaming(engine.endpoint, request(BASE, QUESTION))
    assert text == whole.text
    assert {event["model"] for event in events} == {BASE}
    assert events[-1]["usage"]["completion_tokens"] == whole.body["usage"]["completion_tokens"]
    reasons = [choice["finish_reason"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert reasons == [whole.body["choices"][0]["finish_reason"]]


async def test_an_image_changes_the_answer(engine: ServedEngine) -> None:
    images = (None, picture("red"), picture("blue"))
    answers = [await ask(engine.endpoint, request(BASE, QUESTION, image)) for image in images]
    assert len({(said.text, said.logprobs) for said in answers}) == 3


async def test_base_and_two_adapters_answer_differently(engine: ServedEngine, make_adapter: MakeAdapter) -> None:
    adapters = make_adapter(), make_adapter()
    for adapter in adapters:
        await engine.load_adapter(adapter)
    names = (BASE, *(str(adapter.version) for adapter in adapters))
    answers = [await ask(engine.endpoint, request(name, QUESTION)) for name in names]
    assert len({said.logprobs for said in answers}) == 3
    assert [said.body["model"] for said in answers] == list(names)


async def test_a_loaded_adapter_is_reported_with_its_hash_and_modules(
    engine: ServedEngine, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter()
    loaded = await engine.load_adapter(adapter)
    weights = (adapter.path / "adapter_model.safetensors").read_bytes()
    assert loaded.sha256 == hashlib.sha256(weights).hexdigest()
    assert (loaded.version, loaded.slot_id) == (adapter.version, adapter.slot_id)
    assert any("layers.0" in name and "down_proj" in name for name in loaded.modules)
    assert await engine.list_adapters() == (loaded,)


async def test_a_dropped_adapter_is_gone(engine: ServedEngine, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    await engine.load_adapter(adapter)
    assert await status_of(engine.endpoint, request(str(adapter.version), QUESTION)) == 200
    await engine.drop_adapter(adapter)
    assert await status_of(engine.endpoint, request(str(adapter.version), QUESTION)) == 404
    assert await engine.list_adapters() == ()


async def test_a_step_of_a_job_is_loaded_answers_and_is_gone_when_dropped(
    engine: ServedEngine, make_adapter: MakeAdapter
) -> None:
    step = make_adapter(alias="grpo.1/step")
    assert (await engine.load_adapter(step)).version == step.version
    body = request(str(step.version), QUESTION)
    assert (await ask(engine.endpoint, body)).body["model"] == str(step.version)
    await engine.drop_adapter(step)
    assert await status_of(engine.endpoint, body) == 404
    assert await engine.list_adapters() == ()


async def test_a_sample_has_as_many_token_ids_as_logprobs(engine: ServedEngine) -> None:
    body = request(BASE, QUESTION, picture("red"), n=3, seed=5, temperature=1.0, priority=10, return_token_ids=True)
    said = (await ask(engine.endpoint, body)).body
    assert len(said["prompt_token_ids"]) == said["usage"]["prompt_tokens"]
    assert [choice["index"] for choice in said["choices"]] == [0, 1, 2]
    for choice in said["choices"]:
        assert len(choice["token_ids"]) == len(choice["logprobs"]["content"]) > 0
    assert sum(len(choice["token_ids"]) for choice in said["choices"]) == said["usage"]["completion_tokens"]
    again = (await ask(engine.endpoint, body)).body
    assert [choice["token_ids"] for choice in again["choices"]] == [choice["token_ids"] for choice in said["choices"]]


async def test_samples_differ_by_place_and_by_seed(engine: ServedEngine) -> None:
    def body(seed: int) -> dict[str, Any]:
        return request(BASE, QUESTION, n=4, seed=seed, temperature=2.0, return_token_ids=True)

    answers = [(await ask(engine.endpoint, body(seed))).body["choices"] for seed in (1, 101)]
    ids = [tuple(tuple(choice["token_ids"]) for choice in choices) for choices in answers]
    assert len(set(ids[0])) > 1
    assert ids[0] != ids[1]


async def test_a_prompt_that_is_too_long_does_not_hold_up_the_drop_of_its_adapter(
    engine: ServedEngine, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter()
    await engine.load_adapter(adapter)
    for stream in (False, True):
        body = request(str(adapter.version), LONG_QUESTION * 10, stream=stream)
        assert await status_of(engine.endpoint, body) in (200, 400)  # the fake has no limit
    await asyncio.wait_for(engine.drop_adapter(adapter), 10)
    assert await engine.list_adapters() == ()


async def test_dropping_an_unknown_adapter_does_nothing(engine: ServedEngine) -> None:
    await engine.drop_adapter(AdapterRef(VersionName("vqa", 999), 999, Path()))
    assert await engine.list_adapters() == ()


async def test_loading_the_same_again_changes_nothing(engine: ServedEngine, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    assert await engine.load_adapter(adapter) == await engine.load_adapter(adapter)
    assert len(await engine.list_adapters()) == 1


async def test_a_version_or_slot_is_never_used_twice(engine: ServedEngine, make_adapter: MakeAdapter) -> None:
    first, second = make_adapter(), make_adapter()
    await engine.load_adapter(first)
    with pytest.raises(Conflict):
        await engine.load_adapter(AdapterRef(first.version, first.slot_id, second.path))
    with pytest.raises(Conflict):
        await engine.load_adapter(AdapterRef(second.version, first.slot_id, second.path))
    assert [held.version for held in await engine.list_adapters()] == [first.version]


async def test_more_adapters_than_slots_are_refused_and_all_held_ones_answer(
    engine: ServedEngine, make_adapter: MakeAdapter
) -> None:
    adapters = [make_adapter() for _ in range(MAX_LORAS)]
    for adapter in adapters:
        await engine.load_adapter(adapter)
    with pytest.raises(NoSlot, match="slots are taken"):
        await engine.load_adapter(make_adapter())
    names = [BASE, *(str(adapter.version) for adapter in adapters)]
    answers = await asyncio.gather(*(ask(engine.endpoint, request(name, QUESTION)) for name in names))
    assert [said.body["model"] for said in answers] == names


async def test_a_rank_over_the_limit_is_refused_and_the_engine_serves_on(
    engine: ServedEngine, make_adapter: MakeAdapter
) -> None:
    with pytest.raises(AdapterRefused) as caught:
        await engine.load_adapter(make_adapter(rank=32))
    assert "rank 32 is greater than max_lora_rank 16" in f"{caught.value.message} {caught.value.detail}"
    await _serves_on(engine)


async def test_a_missing_directory_is_refused_and_the_engine_serves_on(engine: ServedEngine, tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="nowhere"):
        await engine.load_adapter(AdapterRef(VersionName("vqa", 998), 998, tmp_path / "nowhere"))
    await _serves_on(engine)


async def test_garbled_weights_are_refused_and_the_engine_serves_on(
    engine: ServedEngine, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter()
    (adapter.path / "adapter_model.safetensors").write_bytes(b"\x08" + bytes(7) + b"no json!")
    with pytest.raises(AdapterRefused):
        await engine.load_adapter(adapter)
    assert await status_of(engine.endpoint, request(str(adapter.version), QUESTION)) == 404
    await _serves_on(engine)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health"), ("GET", "/metrics"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions"),
     ("POST", "/tandem/adapters"), ("DELETE", "/tandem/adapters/vqa@1"), ("GET", "/tandem/stats"), ("GET", "/docs")],
)  # fmt: skip
@pytest.mark.parametrize("token", ["", "wrong", "\u00e9"])
async def test_without_the_token_nothing_answers(engine: ServedEngine, method: str, path: str, token: str) -> None:
    async with session(engine.endpoint, token) as http, http.request(method, path) as answer:
        assert answer.status == 401
        assert (await answer.json())["error"]["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/tokenize"), ("POST", "/v1/completions"), ("GET", "/docs"), ("POST", "/v1/load_lora_adapter"),
     ("GET", "/version"), ("POST", "/v1/chat/completions/batch"), ("GET", "/v1/chat/completions"), ("POST", "/health")],
)  # fmt: skip
async def test_a_route_off_the_list_is_not_there(engine: ServedEngine, method: str, path: str) -> None:
    async with session(engine.endpoint) as http, http.request(method, path, json={}) as answer:
        assert answer.status == 404
        assert (await answer.json())["error"]["code"] == "not_found"


async def test_a_probe_scores_the_answers_tokens_and_tells_versions_apart(
    engine: ServedEngine, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter()
    await engine.load_adapter(adapter)
    prompts = (ProbePrompt(QUESTION, "red", picture("red"), 2), ProbePrompt("is there a circle?", "yes", None, 2))
    base = await engine.probe(engine.base, prompts)
    ours = await engine.probe(adapter.version, prompts)
    assert [len(score.logprobs) for score in base] == [2, 2]
    assert [score.token_ids for score in base] == [score.token_ids for score in ours]
    assert all(value < 0 for score in (*base, *ours) for value in score.logprobs)
    assert [score.logprobs for score in base] != [score.logprobs for score in ours]
    assert await engine.probe(engine.base, prompts) == base


async def test_a_probe_of_an_unknown_version_is_refused(engine: ServedEngine) -> None:
    with pytest.raises(NotFound):
        await engine.probe(VersionName("vqa", 997), (ProbePrompt(QUESTION, "red", None, 2),))


async def test_a_body_with_an_unknown_key_is_refused(engine: ServedEngine) -> None:
    body = {"version": BASE, "prompts": [], "hurry": True}
    async with session(engine.endpoint) as http, http.post("/tandem/probe", json=body) as answer:
        assert answer.status == 400


async def test_a_probe_of_too_many_prompts_is_refused(engine: ServedEngine) -> None:
    prompts = [{"text": "q", "answer": "a", "image": None, "num_tokens": 1}] * (MAX_PROBE_PROMPTS + 1)
    body = {"version": BASE, "prompts": prompts}
    async with session(engine.endpoint) as http, http.post("/tandem/probe", json=body) as answer:
        assert answer.status == 400


async def test_a_client_that_hangs_up_frees_the_engine(engine: ServedEngine) -> None:
    before = (await engine.stats()).num_aborted
    body = request(BASE, QUESTION, max_tokens=WHOLE_CONTEXT_TOKENS, ignore_eos=True, logprobs=False)
    await hang_up_after_first_token(engine.endpoint, body, "hangs-up")
    await eventually(lambda: _aborted(engine, before + 1), timeout_s=2.0)
    await eventually(lambda: _runs(engine, 0))
    assert (await engine.stats()).num_aborted == before + 1


async def test_a_client_that_does_not_wait_for_a_whole_answer_frees_the_engine(engine: ServedEngine) -> None:
    before = (await engine.stats()).num_aborted
    body = request(BASE, QUESTION, max_tokens=WHOLE_CONTEXT_TOKENS, ignore_eos=True, logprobs=False)
    async with session(engine.endpoint) as http:
        asking = asyncio.create_task(_post(http, body))
        await eventually(lambda: _runs(engine, 1))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await eventually(lambda: _aborted(engine, before + 1), timeout_s=2.0)


async def test_a_repeated_prompt_hits_the_prefix_cache_of_its_own_version_only(
    engine: ServedEngine, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter()
    await engine.load_adapter(adapter)
    before = (await engine.stats()).prefix_cache_hit_tokens
    names = (BASE, BASE, str(adapter.version), str(adapter.version))
    answers = [await ask(engine.endpoint, request(name, LONG_QUESTION)) for name in names]
    cached = [said.body["usage"]["prompt_tokens_details"]["cached_tokens"] for said in answers]
    assert answers[0].body["usage"]["prompt_tokens"] >= 150
    # An engine that keeps single tokens finds the template's opening again, which all prompts have.
    assert max(cached[0], cached[2]) <= OPENING_TOKENS < min(cached[1], cached[3])
    assert (await engine.stats()).prefix_cache_hit_tokens - before == sum(cached)


async def test_an_adapter_dropped_in_mid_answer_is_gone_and_the_engine_serves_on(
    engine: ServedEngine, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter()
    await engine.load_adapter(adapter)
    body = request(str(adapter.version), QUESTION, max_tokens=WHOLE_CONTEXT_TOKENS, ignore_eos=True, logprobs=False)
    async with session(engine.endpoint) as http:
        asking = asyncio.create_task(_post(http, body))
        await eventually(lambda: _runs(engine, 1))
        await engine.drop_adapter(adapter)
        assert await engine.list_adapters() == ()
        await _serves_on(engine)
        await asking
    assert await engine.list_adapters() == ()


async def test_a_killed_server_is_reported_failed_and_nothing_of_it_is_left(engine: ServedEngine) -> None:
    group = engine.process.group
    server = next(pid for pid in group_members(group) if pid != group)
    os.kill(server, signal.SIGKILL)
    await asyncio.wait_for(engine.process.wait_exit(), 10)
    health = await engine.health()
    assert health.state is EngineState.FAILED
    assert "exit code 137" in health.detail
    assert group_members(group) == ()
    with pytest.raises(EngineDown, match="exit code 137"):
        await engine.stats()
    await engine.stop()
    await engine.stop()
    assert engine.state is EngineState.STOPPED


async def _serves_on(engine: ServedEngine) -> None:
    assert (await ask(engine.endpoint, request(BASE, QUESTION))).text
    assert (await engine.health()).is_ready
    assert await engine.list_adapters() == ()


async def _post(http: aiohttp.ClientSession, body: object) -> int:
    async with http.post("/v1/chat/completions", json=body) as answer:
        await answer.read()
        return answer.status


async def _runs(engine: ServedEngine, number: int) -> bool:
    return (await engine.stats()).num_running == number


async def _aborted(engine: ServedEngine, number: int) -> bool:
    stats = await engine.stats()
    return stats.num_aborted == number and stats.num_running == 0
