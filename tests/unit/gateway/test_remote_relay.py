"""A gateway over a server elsewhere: what it is asked, what comes back, and what is refused before it is asked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from gateway_stack import CHAT, Stack, image_part, open_stack
from openai_server import MODEL, OpenAiServer, listening

from engines.capabilities import Ability
from engines.config import EngineConfig
from engines.errors import AdapterRefused
from engines.remote import RemoteEngine
from gateway.client import Replica
from gateway.config import TandemConfig, load_config
from gateway.registry import Registry

COUNTS = frozenset({Ability.REQUEST_IDS})


@asynccontextmanager
async def over(server: OpenAiServer, folder: Path) -> AsyncIterator[Stack]:
    """`vqa` on the server, which was probed; `server.seen` holds what came through the gateway only."""
    async with listening(server):
        config = EngineConfig(model=MODEL, kind="remote", url=server.url)
        engine = RemoteEngine("small", config, server.key)
        endpoint = await engine.start()
        server.keys.clear()
        server.seen.clear()
        async with open_stack(folder, endpoint) as stack:
            yield stack
        await engine.stop()


async def feedback(stack: Stack, completion_id: str) -> int:
    body = {"completion_id": completion_id, "metric": "thumb", "value": True}
    return (await stack.http.post("/v1/feedback", json=body)).status_code


@pytest.mark.parametrize("model", ["vqa", "small@0"])
async def test_the_server_is_asked_under_its_own_name_with_its_own_key(tmp_path: Path, model: str) -> None:
    server = OpenAiServer(key="servers-key")
    async with over(server, tmp_path) as stack:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        response = await stack.http.post(CHAT, json=body, headers={"Authorization": "Bearer clients-key"})
    assert response.status_code == 200
    assert response.headers["x-tandem-version"] == "small@0"
    assert [body["model"] for body in server.seen] == [MODEL]
    assert server.keys == ["Bearer servers-key"]
    assert response.json()["model"] == MODEL  # its bytes pass untouched


async def test_a_clients_key_reaches_no_server_that_asks_for_none(tmp_path: Path) -> None:
    server = OpenAiServer()
    async with over(server, tmp_path) as stack:
        await stack.http.post(
            CHAT,
            json={"model": "vqa", "messages": [{"role": "user", "content": "hello"}]},
            headers={"Authorization": "Bearer clients-key"},
        )
    assert server.keys == [None]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_servers_own_id_is_what_feedback_names(tmp_path: Path, stream: bool) -> None:
    server = OpenAiServer(ignores=COUNTS, id_format="chatcmpl-theirs-0000-{}")
    async with over(server, tmp_path) as stack:
        response = await stack.chat(stream=stream)
        completion_id = response.headers["x-tandem-completion"]
        assert f'"id": "{completion_id}"' in response.text
        assert await feedback(stack, completion_id) == 201
        stored = (await stack.http.get(f"/v1/interactions/{completion_id}")).json()
    assert stored["version"] == "small@0"
    assert re.fullmatch("chatcmpl-theirs-0000-[0-9]+", completion_id)


async def test_an_id_that_is_a_mere_count_is_no_key_and_the_header_names_ours(tmp_path: Path) -> None:
    server = OpenAiServer(ignores=COUNTS)
    async with over(server, tmp_path) as stack:
        response = await stack.chat()
        assert response.json()["id"] == "1"
        assert await feedback(stack, "1") == 404
        assert response.headers["x-tandem-completion"] == f"chatcmpl-{response.headers['x-request-id']}"
        assert await feedback(stack, response.headers["x-tandem-completion"]) == 201


async def test_a_server_that_uses_an_id_twice_costs_the_second_row_and_it_is_counted(tmp_path: Path) -> None:
    server = OpenAiServer(ignores=COUNTS, id_format="always-the-same-id")
    async with over(server, tmp_path) as stack:
        for _ in range(2):
            assert (await stack.chat()).status_code == 200
            assert await feedback(stack, "always-the-same-id") == 201
        dropped = (await stack.http.get("/metrics")).text
    assert 'tandem_records_dropped_total{reason="store_failed"} 1.0' in dropped


ASKING: dict[Ability, tuple[str, dict[str, Any]]] = {
    Ability.IMAGES: ("messages", {"content": [{"type": "text", "text": "what is it?"}, image_part()]}),
    Ability.STREAMING: ("stream", {"stream": True}),
    Ability.LOGPROBS: ("logprobs", {"logprobs": True}),
    Ability.TOP_LOGPROBS: ("top_logprobs", {"logprobs": True, "top_logprobs": 2}),
    Ability.N: ("n", {"n": 2}),
    Ability.SEED: ("seed", {"seed": 0}),
    Ability.TOKEN_IDS: ("return_token_ids", {"return_token_ids": True}),
}


@pytest.mark.parametrize("ability", ASKING)
async def test_what_the_server_lacks_is_refused_by_field_and_it_is_not_asked(tmp_path: Path, ability: Ability) -> None:
    param, fields = ASKING[ability]
    server = OpenAiServer(lacks=frozenset({ability}))
    async with over(server, tmp_path) as stack:
        refused = await stack.chat(**fields)
        assert server.seen == []
        assert (await stack.chat()).status_code == 200
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_request")
    assert error["message"].startswith(f"{param}: the server behind small@0 ")


@pytest.mark.parametrize("ability", ASKING)
async def test_what_the_server_can_passes(tmp_path: Path, ability: Ability) -> None:
    lacks = frozenset(ASKING) - {ability}
    async with over(OpenAiServer(lacks=lacks), tmp_path) as stack:
        assert (await stack.chat(**ASKING[ability][1])).status_code == 200


@pytest.mark.parametrize(("status", "ours"), [(307, 502), (401, 502), (404, 503), (429, 503), (400, 400)])
async def test_a_servers_refusal_is_told_in_our_words(tmp_path: Path, status: int, ours: int) -> None:
    server = OpenAiServer()

    async def refuse(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"message": "theirs"}, status=status, headers={"Location": "http://127.0.0.1:9/"})

    async with over(server, tmp_path) as stack:
        server.meddle = refuse
        response = await stack.chat()
    assert response.status_code == ours
    assert "theirs" not in response.text
    assert len(server.seen) == 1


async def test_an_answer_without_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, went_away = OpenAiServer(), asyncio.Event()

    async def go_on_for_ever(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        try:
            while True:
                await answer.write(b" " * 1000)
        finally:
            went_away.set()

    async with over(server, tmp_path) as stack:
        server.meddle = go_on_for_ever
        monkeypatch.setattr("gateway.upstream.MAX_ANSWER_BYTES", 10_000)
        response = await stack.chat()
        await asyncio.wait_for(went_away.wait(), 5)
    assert response.status_code == 502
    assert "more than 10000 bytes" in response.json()["error"]["message"]


async def test_replicas_say_what_their_server_lacks(tmp_path: Path) -> None:
    async with over(OpenAiServer(lacks=frozenset({Ability.IMAGES})), tmp_path) as stack:
        (document,) = (await stack.http.get("/v1/replicas")).json()["data"]
    assert (document["missing"], document["unknown"]) == (["images", "adapters"], ["aborts"])
    assert Replica.model_validate(document).capabilities.words() == "no images, adapters; unknown: aborts"
    assert "127.0.0.1" not in str(document)


async def test_an_adapter_for_a_remote_engine_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    engines = {"small": EngineConfig(model=MODEL, kind="remote", url="http://127.0.0.1:9/v1")}
    async with over(OpenAiServer(), tmp_path) as stack:
        registry = Registry(tmp_path / "registry", stack.services.store, engines)
        with pytest.raises(AdapterRefused, match="engine 'small' is a remote server and takes no adapters: merge"):
            registry.register("vqa", tmp_path / "nowhere")
        assert stack.services.store.versions.list() == ()
    assert not (tmp_path / "registry").exists()


def test_a_remote_model_is_a_name_and_is_looked_for_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    far = {"kind": "remote", "model": "theirs", "url": "http://127.0.0.1:9/v1"}
    models = {f"m{number}": {"engine": "far"} for number in range(9)}  # no slots are needed
    config = TandemConfig.model_validate({"data": tmp_path, "engines": {"far": far}, "models": models})
    assert config.engines["far"].model == "theirs"


def test_a_bad_url_is_named_by_its_section(tmp_path: Path) -> None:
    file = tmp_path / "tandem.toml"
    file.write_text('[engines.far]\nkind = "remote"\nmodel = "m"\nurl = "http://me:secret@host/v1"\n')
    with pytest.raises(Exception, match=r"engines\.far: url: no name or password in it") as caught:
        load_config(file)
    assert "secret" not in str(caught.value)
