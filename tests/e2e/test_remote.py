"""A server that somebody else runs, behind a whole Tandem: asked by the OpenAI SDK, gone, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from elsewhere import KEY, Elsewhere
from stack import Stack, free_port, wait_until

from engines.remote.probing import IMAGE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
VARIABLE = "KEY_OF_ELSEWHERE"


@pytest.fixture(scope="module", params=["fake", pytest.param("vllm", marks=pytest.mark.vllm)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    server = Elsewhere(request.param, tmp_path_factory.mktemp("elsewhere") / "server.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def stack(server: Elsewhere, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("remote")
    values = {
        "data": f"{root}/data",
        "engines.far.kind": "remote",
        "engines.far.model": server.model,
        "engines.far.url": server.url,
        "engines.far.api_key_env": VARIABLE,
        "models.vqa.engine": "far",
        "gateway.port": (port := free_port()),
        "ray.address": "",
    }
    config = root / "tandem.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    stack = Stack(config, root / "data", port, engine="far")
    with pytest.MonkeyPatch.context() as patch:
        refused = stack.try_tandem("serve", "--detach", "-c", str(config))
        assert (refused.returncode, VARIABLE in refused.stderr) == (2, True), refused
        patch.setenv(VARIABLE, KEY)
        stack.start()
        yield stack
        stack.stop()
    assert server.is_up()


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="clients-key", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, content: Any = "what color is the shape?", **fields: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    fixed = {"model": "vqa", "temperature": 0, "max_tokens": 8}
    return client.chat.completions.create(messages=messages, **{**fixed, **fields})


def test_text_images_streams_and_logprobs_come_through(client: openai.OpenAI, server: Elsewhere) -> None:
    whole = ask(client, logprobs=True, top_logprobs=1)
    assert whole.model == server.model
    assert whole.choices[0].logprobs.content[0].logprob <= 0
    streamed = list(ask(client, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in streamed) == whole.choices[0].message.content
    image = {"type": "image_url", "image_url": {"url": IMAGE}}
    seen = ask(client, [image, {"type": "text", "text": "what color is the shape?"}])
    assert seen.usage.prompt_tokens > whole.usage.prompt_tokens
    assert len(ask(client, n=2, temperature=1).choices) == 2


def test_an_answer_is_recorded_and_judged_under_its_id(client: openai.OpenAI, stack: Stack) -> None:
    answer = ask(client)
    with stack.client() as http:
        body = {"completion_id": answer.id, "metric": "thumb", "value": True}
        assert http.post("/v1/feedback", json=body).status_code == 201
        stored = http.get(f"/v1/interactions/{answer.id}").json()
    assert (stored["version"], stored["answer"]) == ("far@0", answer.choices[0].message.content)


def test_status_and_doctor_say_what_the_server_cannot_do(stack: Stack) -> None:
    status = json.loads(stack.tandem("status", "-c", str(stack.config), "--json"))
    (replica,) = status["replicas"]
    assert replica["missing"] == ["adapters"]
    assert "aborts" in replica["unknown"]
    assert (replica["num_running"], replica["slots"]["total"]) == (None, 0)
    found = json.loads(stack.tandem("doctor", "-c", str(stack.config), "--json"))
    (checked,) = [row for row in found if row["check"] == "remote servers"]
    assert checked["level"] == "OK"
    assert "no adapters; unknown: " in checked["found"]
    assert KEY not in json.dumps(found) + json.dumps(status)


def test_no_adapter_is_published_there(stack: Stack, tmp_path: Path) -> None:
    with stack.client() as http:
        refused = http.post("/v1/versions", json={"alias": "vqa", "path": str(tmp_path)})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "adapter_refused")
        assert "merge the adapter into its base" in refused.json()["error"]["message"]
        assert http.get("/v1/versions").json()["data"] == []


def test_a_server_that_goes_away_takes_no_traffic_until_it_is_back(
    client: openai.OpenAI, stack: Stack, server: Elsewhere
) -> None:
    server.stop()
    wait_until(lambda: not stack.is_ready(), "its replica is out of service")
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client)
    assert caught.value.status_code == 503
    server.start()
    wait_until(stack.is_ready, "its replica is back", timeout_s=120.0)
    assert ask(client).choices[0].message.content
