"""The gate of the SGLang plugin: who gets in, under which name, and what becomes of those who leave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi_caller import Caller
from peft_adapters import write_adapter
from scripted_sglang import ScriptedSglang
from sglang_gate import BASE, TOY_BASE, ToyInside, gate, plugin

from engines.errors import DeadlineExceeded, EngineFault
from engines.wire import AdapterList, AdapterReply, ProbeReply, StatsReply

pytestmark = pytest.mark.timeout(20)
CHAT = "/v1/chat/completions"


@pytest.fixture
def importable() -> Iterator[None]:
    with plugin():
        yield


@pytest.fixture
def sglang() -> ScriptedSglang:
    return ScriptedSglang()


@pytest.fixture
def inside(sglang: ScriptedSglang) -> ToyInside:
    return ToyInside(sglang.settle)


@pytest.fixture
def engine(importable: None, sglang: ScriptedSglang, inside: ToyInside) -> Caller:
    return gate(sglang.app, inside)


def body(model: str = BASE, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}


async def load(engine: Caller, tmp_path: Path, number: int) -> AdapterReply:
    path = tmp_path / f"adapter-{number}"
    write_adapter(path, TOY_BASE, seed=number)
    asked = {"version": f"vqa@{number}", "slot_id": number, "path": str(path)}
    reply = await engine.call("POST", "/tandem/adapters", asked)
    assert reply.status == 200, reply.body
    return AdapterReply.model_validate_json(reply.body)


@pytest.mark.parametrize("token", ["", "wrong", "\u00e9"])
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/tandem/stats", "/server_info", "/docs"])
async def test_without_the_token_nothing_answers(engine: Caller, path: str, token: str) -> None:
    reply = await engine.call("GET", path, token=token)
    assert (reply.status, reply.json()["error"]["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/server_info"), ("POST", "/load_lora_adapter"), ("POST", "/load_lora_adapter_from_tensors"),
     ("POST", "/generate"), ("POST", "/abort_request"), ("GET", CHAT), ("POST", "/health"), ("GET", "/health/"),
     ("GET", "/tandem/adapters/x"), ("POST", "/v1/completions"), ("GET", "/metrics/")],
)  # fmt: skip
async def test_a_route_off_the_list_is_not_there(engine: Caller, method: str, path: str) -> None:
    reply = await engine.call(method, path, {})
    assert (reply.status, reply.json()["error"]["code"]) == (404, "not_found")


async def test_a_websocket_is_closed(importable: None, sglang: ScriptedSglang, inside: ToyInside) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        pytest.fail("it was listened to")

    await gate(sglang.app, inside).app({"type": "websocket", "path": "/v1/realtime"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize("name", ["vqa@1", "small", "small@0:vqa@1", "other", "small@0:", ":vqa@1"])
async def test_a_name_that_is_not_loaded_never_reaches_sglang(
    engine: Caller, sglang: ScriptedSglang, name: str
) -> None:
    sglang.paths["vqa@1"] = "held, but not by us"
    reply = await engine.call("POST", CHAT, body(name))
    assert (reply.status, reply.json()["error"]["code"]) == (404, "not_found")
    assert not sglang.asked


async def test_an_adapter_is_always_named_with_its_base(engine: Caller, sglang: ScriptedSglang, tmp_path: Path) -> None:
    await load(engine, tmp_path, 1)
    for name in (BASE, "vqa@1"):
        assert (await engine.call("POST", CHAT, body(name))).json()["model"] == name
    assert [asked["model"] for asked in sglang.asked] == [BASE, f"{BASE}:vqa@1"]


@pytest.mark.parametrize("key", ["07", "+7", " 7", "-7", "7_0", "7.0", "\u0667", "", "seven"])
async def test_a_token_id_has_one_spelling(engine: Caller, sglang: ScriptedSglang, key: str) -> None:
    reply = await engine.call("POST", CHAT, body(logit_bias={key: 100}))
    assert (reply.status, reply.json()["error"]["param"]) == (400, "logit_bias")
    assert not sglang.asked
    assert (await engine.call("POST", CHAT, body(logit_bias={"7": 100, "0": 1.5}))).status == 200


async def test_the_vocabulary_is_read_once(engine: Caller, inside: ToyInside) -> None:
    for _ in range(2):
        assert (await engine.call("POST", CHAT, body())).status == 200
    assert inside.num_looks == 1


async def test_what_is_held_is_listed_with_its_hash_and_modules(engine: Caller, tmp_path: Path) -> None:
    loaded = await load(engine, tmp_path, 1)
    assert loaded.version == "vqa@1"
    assert len(loaded.modules) == 28
    reply = await engine.call("GET", "/tandem/adapters")
    assert AdapterList.model_validate_json(reply.body).adapters == [loaded]
    assert [row["id"] for row in (await engine.call("GET", "/v1/models")).json()["data"]] == [BASE, "vqa@1"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_an_adapter_frees_it(
    engine: Caller, sglang: ScriptedSglang, tmp_path: Path, stream: bool
) -> None:
    await load(engine, tmp_path, 1)
    sglang.is_held = True
    call = engine.begin("POST", CHAT, body("vqa@1", stream=stream))
    await until_asked(sglang, 1)
    call.hang_up()
    await call.reply()
    stats = StatsReply.model_validate_json((await engine.call("GET", "/tandem/stats")).body)
    assert (stats.num_aborted, stats.num_running, stats.num_waiting) == (1, 0, 0)
    assert sglang.users["vqa@1"] == 0
    assert (await engine.call("DELETE", "/tandem/adapters/vqa@1")).status == 200


async def test_who_has_had_its_answer_is_not_counted_as_gone(engine: Caller) -> None:
    call = engine.begin("POST", CHAT, body())
    await call.reply()
    call.hang_up()
    assert (await engine.call("GET", "/tandem/stats")).json()["num_aborted"] == 0


async def test_an_adapter_that_is_dropped_ends_its_answers_first(
    engine: Caller, sglang: ScriptedSglang, tmp_path: Path
) -> None:
    await load(engine, tmp_path, 1)
    sglang.is_held = True
    calls = [engine.begin("POST", CHAT, body("vqa@1", n=2)), engine.begin("POST", CHAT, body("vqa@1", stream=True))]
    await until_asked(sglang, 3)
    assert (await engine.call("GET", "/tandem/stats")).json()["num_running"] == 3
    assert (await engine.call("DELETE", "/tandem/adapters/vqa@1")).status == 200
    whole, streamed = [await call.reply() for call in calls]
    assert [choice["finish_reason"] for choice in whole.json()["choices"]] == ["abort", "abort"]
    assert streamed.events()[-1]["choices"][0]["finish_reason"] == "abort"
    assert not sglang.paths


async def test_a_count_that_sglang_has_lost_does_not_hold_up_an_unload(
    engine: Caller, sglang: ScriptedSglang, tmp_path: Path
) -> None:
    await load(engine, tmp_path, 1)
    sglang.users["vqa@1"] = 2
    assert (await engine.call("DELETE", "/tandem/adapters/vqa@1")).status == 200


async def test_a_load_that_does_not_end_makes_the_engine_unwell(
    engine: Caller, sglang: ScriptedSglang, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tandem_sglang_plugin.shelf

    monkeypatch.setattr(tandem_sglang_plugin.shelf, "LOAD_TIMEOUT_S", 0.05)
    assert (await engine.call("GET", "/health")).status == 200
    sglang.is_stuck = True
    path = str(write_adapter(tmp_path / "adapter", TOY_BASE, seed=1))
    reply = await engine.call("POST", "/tandem/adapters", {"version": "vqa@1", "slot_id": 1, "path": path})
    assert (reply.status, reply.json()["error"]["code"]) == (503, "engine_down")
    health = await engine.call("GET", "/health")
    assert health.status == 503
    assert "vqa@1 was not loaded" in health.json()["error"]["message"]
    assert (await engine.call("POST", CHAT, body())).status == 503


async def test_an_unload_that_does_not_end_makes_the_engine_unwell(
    importable: None, sglang: ScriptedSglang, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tandem_sglang_plugin.shelf

    monkeypatch.setattr(tandem_sglang_plugin.shelf, "UNLOAD_TIMEOUT_S", 0.05)
    engine = gate(sglang.app, ToyInside())
    await load(engine, tmp_path, 1)
    sglang.users["vqa@1"] = 1
    assert (await engine.call("DELETE", "/tandem/adapters/vqa@1")).status == 503
    assert (await engine.call("GET", "/health")).status == 503


async def test_a_version_or_slot_is_never_used_twice(engine: Caller, tmp_path: Path) -> None:
    first = await load(engine, tmp_path, 1)
    assert await again(engine, "vqa@1", 1, tmp_path / "adapter-1") == (200, first.model_dump())
    status, error = await again(engine, "vqa@1", 1, tmp_path / "elsewhere")
    assert (status, error["error"]["code"]) == (409, "conflict")
    status, error = await again(engine, "vqa@2", 1, tmp_path / "adapter-1")
    assert (status, error["error"]["code"]) == (409, "conflict")


async def test_more_adapters_than_slots_are_refused(engine: Caller, tmp_path: Path) -> None:
    for number in (1, 2):
        await load(engine, tmp_path, number)
    status, error = await again(engine, "vqa@3", 3, tmp_path / "adapter-1")
    assert (status, error["error"]["code"]) == (503, "no_adapter_slot")


async def test_a_probe_scores_the_last_tokens(engine: Caller, sglang: ScriptedSglang) -> None:
    prompt = {"text": "what?", "answer": "red", "image": "data:image/png;base64,AA", "num_tokens": 2}
    reply = await engine.call("POST", "/tandem/probe", {"version": BASE, "prompts": [prompt]})
    (score,) = ProbeReply.model_validate_json(reply.body).scores
    assert (score.token_ids, score.logprobs) == ([7, 8], [-7.0, -8.0])
    (asked,) = sglang.asked
    assert asked["text"].endswith("<|im_start|>assistant\nred<|im_end|>")
    assert "<|image_pad|>" in asked["text"]
    assert asked["image_data"] == [prompt["image"]]
    assert "lora_path" not in asked


@pytest.mark.parametrize("num_tokens", [0, 8])
async def test_a_probe_of_more_than_the_prompt_is_refused(engine: Caller, num_tokens: int) -> None:
    prompt = {"text": "what?", "answer": "red", "image": None, "num_tokens": num_tokens}
    reply = await engine.call("POST", "/tandem/probe", {"version": BASE, "prompts": [prompt]})
    assert (reply.status, reply.json()["error"]["code"]) == (400, "invalid_request")


async def test_a_probe_of_an_unknown_version_is_refused(engine: Caller) -> None:
    prompt = {"text": "what?", "answer": "red", "image": None, "num_tokens": 1}
    reply = await engine.call("POST", "/tandem/probe", {"version": "vqa@9", "prompts": [prompt]})
    assert (reply.status, reply.json()["error"]["code"]) == (404, "not_found")


async def test_a_probe_that_takes_too_long_is_ended(
    engine: Caller, sglang: ScriptedSglang, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tandem_sglang_plugin.scoring

    monkeypatch.setattr(tandem_sglang_plugin.scoring, "SCORE_TIMEOUT_S", 0.05)
    sglang.is_held = True
    prompt = {"text": "what?", "answer": "red", "image": None, "num_tokens": 1}
    reply = await engine.call("POST", "/tandem/probe", {"version": BASE, "prompts": [prompt]})
    assert (reply.status, reply.json()["error"]["code"]) == (504, DeadlineExceeded.code)
    assert (await engine.call("GET", "/tandem/stats")).json()["num_running"] == 0


async def test_an_abort_that_is_not_answered_is_repeated(
    engine: Caller, sglang: ScriptedSglang, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tandem_sglang_plugin.inner

    await load(engine, tmp_path, 1)
    monkeypatch.setattr(tandem_sglang_plugin.inner, "CALL_TIMEOUT_S", 0.05)
    sglang.is_held, sglang.lost_aborts = True, 1
    call = engine.begin("POST", CHAT, body("vqa@1"))
    await until_asked(sglang, 1)
    assert (await engine.call("DELETE", "/tandem/adapters/vqa@1")).status == 200
    assert (await call.reply()).json()["choices"][0]["finish_reason"] == "abort"


@pytest.mark.parametrize(("ours", "theirs"), [("/tandem/stats", "/v1/loads"), ("/tandem/adapters", "/v1/models")])
async def test_what_sglang_does_not_tell_is_not_made_up(
    engine: Caller, sglang: ScriptedSglang, ours: str, theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tandem_sglang_plugin.inner

    monkeypatch.setattr(tandem_sglang_plugin.inner, "CALL_TIMEOUT_S", 0.05)
    for broken, status, code in ((sglang.silent, 504, DeadlineExceeded.code), (sglang.failing, 502, EngineFault.code)):
        broken.add(theirs)
        reply = await engine.call("GET", ours)
        assert (reply.status, reply.json()["error"]["code"]) == (status, code)
        broken.clear()


async def test_a_control_body_with_an_unknown_key_is_refused(engine: Caller) -> None:
    reply = await engine.call("POST", "/tandem/probe", {"version": BASE, "prompts": [], "hurry": True})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "hurry")


async def again(engine: Caller, version: str, slot_id: int, path: Path) -> tuple[int, Any]:
    reply = await engine.call("POST", "/tandem/adapters", {"version": version, "slot_id": slot_id, "path": str(path)})
    return reply.status, reply.json()


async def until_asked(sglang: ScriptedSglang, number: int) -> None:
    async with asyncio.timeout(5):
        while len(sglang.asked) < number:  # noqa: ASYNC110  the application has no event of ours
            await asyncio.sleep(0)
