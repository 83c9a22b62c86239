"""The gate in front of what a real SGLang answered (`tests/gpu/record_sglang.py` writes it down, by running this file).

With TANDEM_RECORD_SGLANG the same tests run against the server at that address, and its answers are recorded.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from asgi_caller import Caller, Reply
from chatting import picture, request
from peft_adapters import write_adapter
from sglang_gate import BASE, TOY_BASE, ToyInside, gate, plugin
from sglang_tape import RECORDING, Recorder, Replay, Tape

pytestmark = pytest.mark.timeout(60)
CHAT = "/v1/chat/completions"
QUESTION = "what color is the shape?"
URL = os.environ.get("TANDEM_RECORD_SGLANG", "")
PATH = Path(os.environ.get("TANDEM_RECORDING", RECORDING))


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Any:
    if URL:
        return Recorder(URL, PATH, request.node.name)
    if not PATH.exists():
        pytest.skip("there is no recording of a real SGLang; tests/gpu/record_sglang.py makes one")
    said = Tape.load(PATH).tests.get(request.node.name)
    if said is None:
        pytest.skip("the recording does not have this test; tests/gpu/record_sglang.py makes another")
    return Replay(said)


@pytest.fixture
def inside() -> ToyInside:
    return ToyInside(is_seeded=not PATH.exists() or Tape.load(PATH).is_seeded)


@pytest.fixture
def importable() -> Iterator[None]:
    with plugin():
        yield


@pytest_asyncio.fixture
async def engine(app: Any, inside: ToyInside, importable: None) -> AsyncIterator[Caller]:
    """A client of the gate; what a test has loaded is dropped in the end."""
    caller = gate(app, inside)
    yield caller
    for row in (await caller.call("GET", "/tandem/adapters")).json()["adapters"]:
        await caller.call("DELETE", f"/tandem/adapters/{row['version']}")


def body(model: str = BASE, image: str | None = None, **fields: Any) -> dict[str, Any]:
    return request(model, QUESTION, image, **{"seed": 5, **fields})


async def load(engine: Caller, directory: Path, number: int) -> dict[str, Any]:
    write_adapter(directory, TOY_BASE, seed=number)
    reply = await engine.call(
        "POST", "/tandem/adapters", {"version": f"vqa@{number}", "slot_id": number, "path": str(directory)}
    )
    assert reply.status == 200, reply.body
    return reply.json()


def only_choice(reply: Reply) -> dict[str, Any]:
    assert reply.status == 200, reply.body
    (choice,) = reply.json()["choices"]
    return choice


async def test_the_base_answers_under_its_version_and_the_callers_id(engine: Caller) -> None:
    reply = await engine.call("POST", CHAT, body(), X_Request_Id="0190-abc")
    said, choice = reply.json(), only_choice(reply)
    assert (said["id"], said["model"], said["object"]) == ("chatcmpl-0190-abc", BASE, "chat.completion")
    assert said["usage"]["completion_tokens"] == len(choice["logprobs"]["content"]) > 0
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] in ("stop", "length")
    assert "token_ids" not in choice


async def test_a_stream_says_what_the_whole_answer_says(engine: Caller) -> None:
    whole = await engine.call("POST", CHAT, body())
    asked = body(stream=True, stream_options={"include_usage": True})
    events = (await engine.call("POST", CHAT, asked, X_Request_Id="0190-def")).events()
    assert {(event["id"], event["model"]) for event in events} == {("chatcmpl-0190-def", BASE)}
    choices = [choice for event in events for choice in event["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert text == only_choice(whole)["message"]["content"]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert reasons == [only_choice(whole)["finish_reason"]]
    tokens = [token for choice in choices for token in (choice.get("logprobs") or {}).get("content") or ()]
    ended_by_a_token = reasons == ["stop"]
    assert len(tokens) == whole.json()["usage"]["completion_tokens"] - ended_by_a_token
    assert events[-1]["usage"]["completion_tokens"] == whole.json()["usage"]["completion_tokens"]


async def test_a_stream_without_usage_asked_for_has_none(engine: Caller) -> None:
    events = (await engine.call("POST", CHAT, body(stream=True))).events()
    assert all(event["choices"] for event in events)


async def test_samples_have_as_many_ids_as_logprobs_and_places_of_their_own(engine: Caller) -> None:
    asked = body(image=picture("red"), n=3, temperature=1.0, priority=10, return_token_ids=True, top_k=0)
    said = (await engine.call("POST", CHAT, asked)).json()
    assert [choice["index"] for choice in said["choices"]] == [0, 1, 2]
    assert len(said["prompt_token_ids"]) == said["usage"]["prompt_tokens"]
    for choice in said["choices"]:
        assert len(choice["token_ids"]) == len(choice["logprobs"]["content"]) > 0
    assert sum(len(choice["token_ids"]) for choice in said["choices"]) == said["usage"]["completion_tokens"]


async def test_a_stream_of_several_samples_tells_them_apart(engine: Caller) -> None:
    asked = body(n=2, temperature=2.0, stream=True, stream_options={"include_usage": True})
    events = (await engine.call("POST", CHAT, asked)).events()
    ended = [choice["index"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(ended) == [0, 1]


async def test_a_placeholder_is_never_sampled_however_much_it_is_favoured(engine: Caller, inside: ToyInside) -> None:
    from engines.profiles import PROFILES

    placeholders = inside.ids_of(PROFILES["qwen3_vl"].vision_tokens)
    bias = {str(number): 100.0 for number in placeholders}
    asked = body(temperature=1.0, logit_bias=bias, return_token_ids=True, ignore_eos=True, max_tokens=16)
    ids = only_choice(await engine.call("POST", CHAT, asked))["token_ids"]
    assert len(ids) == 16
    assert not set(ids) & set(placeholders)


async def test_an_adapter_is_loaded_answers_under_its_name_and_is_gone_when_dropped(
    engine: Caller, inside: ToyInside, tmp_path: Path
) -> None:
    loaded = await load(engine, tmp_path / "adapter", 1)
    assert len(loaded["modules"]) == 4 * 7
    assert (await engine.call("GET", "/tandem/adapters")).json() == {"adapters": [loaded]}
    base, ours = [await engine.call("POST", CHAT, body(name)) for name in (BASE, "vqa@1")]
    assert ours.json()["model"] == "vqa@1"
    first = [only_choice(reply)["logprobs"]["content"][0]["logprob"] for reply in (base, ours)]
    assert first[0] != first[1]
    assert (await engine.call("DELETE", "/tandem/adapters/vqa@1")).status == 200
    assert (await engine.call("POST", CHAT, body("vqa@1"))).status == 404
    assert (await engine.call("GET", "/tandem/adapters")).json() == {"adapters": []}
    assert inside.settled == ["vqa@1"]


async def test_a_step_of_a_job_is_named_through(engine: Caller, tmp_path: Path) -> None:
    path = str(write_adapter(tmp_path / "step", TOY_BASE, seed=2))
    version = "grpo.1/step@2"
    added = await engine.call("POST", "/tandem/adapters", {"version": version, "slot_id": 2, "path": path})
    assert added.json()["version"] == version
    assert (await engine.call("POST", CHAT, body(version))).json()["model"] == version
    assert (await engine.call("DELETE", f"/tandem/adapters/{version}")).status == 200


async def test_a_client_that_leaves_an_adapter_is_counted_and_the_adapter_can_be_dropped(
    engine: Caller, tmp_path: Path
) -> None:
    await load(engine, tmp_path / "adapter", 3)
    asked = body("vqa@3", stream=True, max_tokens=3000, ignore_eos=True, logprobs=False)
    call = engine.begin("POST", CHAT, asked)
    await call.hang_up_after_first_part()
    await call.reply()
    stats = (await engine.call("GET", "/tandem/stats")).json()
    assert (stats["num_aborted"], stats["num_running"], stats["num_waiting"]) == (1, 0, 0)
    assert (await engine.call("DELETE", "/tandem/adapters/vqa@3")).status == 200


async def test_an_adapter_dropped_in_mid_answer_ends_the_answer(engine: Caller, tmp_path: Path) -> None:
    await load(engine, tmp_path / "adapter", 4)
    asked = body("vqa@4", stream=True, max_tokens=3000, ignore_eos=True, logprobs=False)
    call = engine.begin("POST", CHAT, asked)
    await call.first_part()
    assert (await engine.call("DELETE", "/tandem/adapters/vqa@4")).status == 200
    events = (await call.reply()).events()
    assert [c["finish_reason"] for event in events for c in event["choices"] if c["finish_reason"]] == ["abort"]
    assert (await engine.call("GET", "/tandem/adapters")).json() == {"adapters": []}


async def test_a_probe_scores_the_answers_tokens_and_tells_versions_apart(engine: Caller, tmp_path: Path) -> None:
    await load(engine, tmp_path / "adapter", 5)
    prompts = [
        {"text": QUESTION, "answer": "red", "image": picture("red"), "num_tokens": 2},
        {"text": "is there a circle?", "answer": "yes", "image": None, "num_tokens": 2},
    ]
    scores = {}
    for version in (BASE, "vqa@5"):
        reply = await engine.call("POST", "/tandem/probe", {"version": version, "prompts": prompts})
        assert reply.status == 200, reply.body
        scores[version] = reply.json()["scores"]
    base, ours = scores[BASE], scores["vqa@5"]
    assert [score["token_ids"] for score in base] == [score["token_ids"] for score in ours]
    assert all(len(score["logprobs"]) == 2 and max(score["logprobs"]) < 0 for score in (*base, *ours))
    assert [score["logprobs"] for score in base] != [score["logprobs"] for score in ours]


async def test_what_sglang_refuses_is_refused_in_openais_shape(engine: Caller) -> None:
    reply = await engine.call("POST", CHAT, body(max_tokens=1_000_000))
    assert reply.status == 400
    assert reply.json()["error"]["code"] == "invalid_request"
    assert "1000000" in reply.json()["error"]["message"]


async def test_an_adapter_that_sglang_refuses_is_refused_with_its_reason(engine: Caller, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter", TOY_BASE, seed=6)
    config = json.loads((path / "adapter_config.json").read_text())
    config["target_modules"].append("embed_tokens")
    (path / "adapter_config.json").write_text(json.dumps(config))
    asked = {"version": "vqa@6", "slot_id": 6, "path": str(path)}
    error = (await engine.call("POST", "/tandem/adapters", asked)).json()["error"]
    assert error["code"] == "adapter_refused"
    assert "incompatible" in error["detail"]
    assert (await engine.call("POST", CHAT, body("vqa@6"))).status == 404


async def test_a_repeated_prompt_hits_the_prefix_cache(engine: Caller) -> None:
    asked = request(BASE, "is there a green triangle in the image? " * 20, seed=5)
    replies = [(await engine.call("POST", CHAT, asked)).json()["usage"] for _ in range(2)]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in replies]
    assert cached[1] > 100
    assert (await engine.call("GET", "/tandem/stats")).json()["prefix_cache_hit_tokens"] == sum(cached)


async def test_a_server_that_is_well_says_so(engine: Caller) -> None:
    assert (await engine.call("GET", "/health")).status == 200
