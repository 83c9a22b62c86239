"""A server elsewhere as an engine: its probe, its health, and what is refused there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from openai_server import MODEL, OpenAiServer, listening, never

from engines.actor import EngineActor
from engines.capabilities import Ability, Capabilities
from engines.config import EngineConfig
from engines.errors import AdapterRefused, ConfigError, EngineDown, Refused
from engines.remote import RemoteEngine
from engines.remote_key import api_key_of
from engines.types import AdapterRef, EngineState, ProbePrompt, VersionName

PLAIN = frozenset(
    {Ability.IMAGES, Ability.STREAMING, Ability.LOGPROBS, Ability.TOP_LOGPROBS, Ability.N, Ability.SEED}
    | {Ability.TOKEN_IDS, Ability.REQUEST_IDS}
)
ALWAYS = frozenset({Ability.ADAPTERS})
REF = AdapterRef(VersionName("vqa", 1), 1, Path("/nowhere"))


def engine_at(url: str, key: str = "", **fields: Any) -> RemoteEngine:
    return RemoteEngine("far", EngineConfig(model=MODEL, kind="remote", url=url, **fields), key)


@asynccontextmanager
async def started(server: OpenAiServer, key: str = "", **fields: Any) -> AsyncIterator[RemoteEngine]:
    async with listening(server):
        engine = engine_at(server.url, key, **fields)
        try:
            await engine.start()
            yield engine
        finally:
            await engine.stop()


async def capabilities_of(server: OpenAiServer) -> Capabilities:
    async with started(server) as engine:
        return engine.endpoint.capabilities


async def test_a_server_that_can_all_lacks_adapters_only_and_hides_whether_it_aborts() -> None:
    found = await capabilities_of(OpenAiServer())
    assert found == Capabilities(ALWAYS, frozenset({Ability.ABORTS}))
    assert found.words() == "no adapters; unknown: aborts"


@pytest.mark.parametrize("ability", sorted(PLAIN - {Ability.REQUEST_IDS}))
async def test_what_a_server_refuses_is_missing_and_nothing_else(ability: Ability) -> None:
    found = await capabilities_of(OpenAiServer(lacks=frozenset({ability})))
    assert found.missing == ALWAYS | {ability}


@pytest.mark.parametrize("ability", sorted(PLAIN - {Ability.SEED}))
async def test_what_a_server_takes_without_doing_it_is_missing(ability: Ability) -> None:
    found = await capabilities_of(OpenAiServer(ignores=frozenset({ability})))
    assert found.missing == ALWAYS | {ability}


async def test_a_seed_that_changes_nothing_is_unknown_and_not_missing() -> None:
    found = await capabilities_of(OpenAiServer(ignores=frozenset({Ability.SEED})))
    assert (found.missing, found.unknown) == (ALWAYS, {Ability.SEED, Ability.ABORTS})


async def test_a_server_that_can_nothing_but_text_is_served_all_the_same() -> None:
    found = await capabilities_of(OpenAiServer(lacks=PLAIN))
    assert found.missing == PLAIN | ALWAYS


async def test_a_server_that_fails_on_images_lacks_them() -> None:
    async def fail_on_images(_request: web.Request, body: dict[str, Any]) -> web.StreamResponse | None:
        return web.Response(status=500) if isinstance(body["messages"][0]["content"], list) else None

    assert Ability.IMAGES in (await capabilities_of(OpenAiServer(meddle=fail_on_images))).missing


@pytest.mark.parametrize("status", [401, 403])
async def test_a_field_that_our_key_does_not_allow_is_missing(status: int) -> None:
    async def forbid_images(_request: web.Request, body: dict[str, Any]) -> web.StreamResponse | None:
        return web.Response(status=status) if isinstance(body["messages"][0]["content"], list) else None

    found = await capabilities_of(OpenAiServer(meddle=forbid_images))
    assert found.missing == ALWAYS | {Ability.IMAGES}


async def test_the_endpoint_names_the_servers_model_and_carries_its_key() -> None:
    server = OpenAiServer(key="secret-key")
    async with started(server, "secret-key") as engine:
        endpoint = engine.endpoint
    assert endpoint.url == server.url.removesuffix("/v1")
    assert endpoint.model_of(VersionName("far", 0)) == MODEL
    assert endpoint.token == "secret-key"
    assert "secret-key" not in repr(endpoint)
    assert set(server.keys) == {"Bearer secret-key"}
    assert {body["model"] for body in server.seen} == {MODEL}


async def test_without_a_key_no_authorization_is_sent() -> None:
    server = OpenAiServer()
    async with started(server):
        assert set(server.keys) == {None}


async def start_fails(server: OpenAiServer, words: str, **fields: Any) -> None:
    async with listening(server):
        engine = engine_at(server.url, **fields)
        with pytest.raises(EngineDown, match=words):
            await engine.start()
        health = await engine.health()
        assert health.state is EngineState.FAILED
        with pytest.raises(EngineDown, match="is failed, not ready"):
            _ = engine.endpoint
        await engine.stop()


async def test_a_model_that_the_server_does_not_list_ends_the_start_with_those_it_lists() -> None:
    server = OpenAiServer(models=("org/other", "org/more"))
    await start_fails(server, "has no model 'org/theirs'; set `model` to one that it lists: org/other, org/more")


async def test_a_wrong_key_ends_the_start_and_says_where_the_key_comes_from() -> None:
    await start_fails(OpenAiServer(key="another"), "does not take our API key .HTTP 401.; check the variable")


async def test_a_server_that_never_answers_ends_the_start_by_its_deadline() -> None:
    await start_fails(OpenAiServer(meddle=never), "took over 0.2 s; raise start_timeout_s", start_timeout_s=0.2)


async def test_garbage_instead_of_an_answer_ends_the_start() -> None:
    async def garbage(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(text="<html>welcome</html>")

    await start_fails(OpenAiServer(meddle=garbage), "answered no chat completion as OpenAI's API has it")


async def test_a_server_without_a_list_of_models_ends_the_start() -> None:
    await start_fails(OpenAiServer(status=404), "answered 404 to GET /v1/models")


async def test_a_server_that_dies_in_mid_probe_ends_the_start() -> None:
    async def die_on_streams(request: web.Request, body: dict[str, Any]) -> web.StreamResponse | None:
        if not body.get("stream"):
            return None
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b'data: {"choices": [')
        assert request.transport is not None
        request.transport.abort()
        return answer

    await start_fails(OpenAiServer(meddle=die_on_streams), "cannot be reached, or broke off POST")


async def test_a_redirect_is_not_followed() -> None:
    async def elsewhere(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/"})

    await start_fails(OpenAiServer(meddle=elsewhere), "answered 307 to POST")


async def test_a_server_that_went_away_has_failed_and_one_that_is_busy_is_unresponsive() -> None:
    server = OpenAiServer()
    async with listening(server):
        engine = engine_at(server.url)
        await engine.start()
        assert (await engine.health()).is_ready
        for status in (408, 429, 502, 503, 504, 520, 524):
            server.status = status
            assert (await engine.health()).state is EngineState.UNRESPONSIVE
        server.status, server.models = 200, ("org/other",)
        assert "has no model 'org/theirs'" in (await engine.health()).detail
    gone = await engine.health()
    assert gone.state is EngineState.FAILED
    assert "cannot be reached" in gone.detail
    await engine.stop()


async def test_adapters_are_refused_with_what_to_do_and_none_are_held() -> None:
    async with started(OpenAiServer()) as engine:
        with pytest.raises(AdapterRefused, match="takes no adapters: merge the adapter into its base and serve"):
            await engine.load_adapter(REF)
        await engine.drop_adapter(REF)
        assert await engine.list_adapters() == ()
        with pytest.raises(Refused, match="scores no given answers"):
            await engine.probe(VersionName("far", 0), (ProbePrompt("q", "a", None, 1),))
        assert await engine.stats() is None


async def test_stop_ends_the_engine_and_not_the_server() -> None:
    async with listening(OpenAiServer()) as server:
        for _ in range(2):  # a new engine finds the server again
            engine = engine_at(server.url)
            await engine.start()
            await engine.stop()
            await engine.stop()
            assert (await engine.health()).state is EngineState.STOPPED


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:1/v1", "ftp://host/v1", "file:///v1", "http:///v1", "http://host", "http://host:0/v1"),
        *("http://host:x/v1", "http://[::1/v1", "http://host/v1?key=1", "http://host/v1#x", "http://me:secret@host/v1"),
    ],
)
def test_a_url_that_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url: ") as caught:
        engine_at(url)
    assert "secret" not in str(caught.value.errors()[0]["msg"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "fields", [{"replicas": 2}, {"tensor_parallel": 2}, {"args": {"seed": 1}}, {"reserved_for_rollout": 1}]
)
def test_what_means_nothing_for_a_remote_server_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(fields))}: means nothing for a server that runs elsewhere"):
        engine_at("http://host/v1", **fields)


def test_a_url_for_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="url: is for kind = 'remote' only"):
        EngineConfig(model="m", kind="fake", url="http://host/v1")


def test_the_key_is_read_from_the_variable_that_the_section_names(monkeypatch: pytest.MonkeyPatch) -> None:
    section = EngineConfig(model=MODEL, kind="remote", url="http://host/v1", api_key_env="FAR_KEY")
    monkeypatch.setenv("FAR_KEY", "k-1")
    assert api_key_of("far", section) == "k-1"
    assert api_key_of("far", section.model_copy(update={"api_key_env": ""})) == ""
    monkeypatch.setenv("FAR_KEY", "a\nb")
    with pytest.raises(ConfigError, match="the environment variable FAR_KEY holds no API key"):
        api_key_of("far", section)
    monkeypatch.delenv("FAR_KEY")
    with pytest.raises(ConfigError, match="FAR_KEY is not set; export it where this command is started"):
        api_key_of("far", section)


async def test_an_actor_finds_a_server_that_is_back_and_probes_it_anew(tmp_path: Path) -> None:
    async with listening(OpenAiServer(key="k")) as server:
        config = EngineConfig(model=MODEL, kind="remote", url=server.url)
        actor = EngineActor("far", config, tmp_path, tmp_path / "copies", "k")
        first = await actor.start()
        status = await actor.status()
        assert (status.endpoint, status.stats, status.num_slots) == (first, None, 0)
    assert (await actor.status()).health.state is EngineState.FAILED
    with pytest.raises(EngineDown, match="cannot be reached"):
        await actor.start()
    port = int(server.url.removesuffix("/v1").rpartition(":")[2])
    async with listening(OpenAiServer(key="k", lacks=frozenset({Ability.IMAGES})), port):
        again = await actor.start()
    assert again.capabilities.missing == ALWAYS | {Ability.IMAGES}
    assert again != first
    await actor.stop()
