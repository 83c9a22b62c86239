"""A release through the HTTP API under load, on real processes of the fake engine: nobody is failed or lied to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway_stack import CHAT, listen, until
from local_replicas import LocalActors
from tiny_adapter import lora_tensors, write_adapter, write_base

from engines.fake.chat import ChatRequest, complete, prompt_bytes
from engines.fake.model import MODEL_FILE, FakeModel
from gateway.app import build_app
from gateway.cluster import open_services
from gateway.config import TandemConfig
from gateway.steps import StepClock

pytestmark = pytest.mark.timeout(90)

MESSAGES = [{"role": "user", "content": "what is it?"}]
NUM_CLIENTS = 4


@dataclass
class Site:
    """A gateway over fake engines, what its versions answer, and what its clients were told."""

    url: str
    http: aiohttp.ClientSession
    root: Path
    weights: dict[str, str] = field(default_factory=dict)
    """Version -> what it answers by."""
    said: list[tuple[int, str, str, str]] = field(default_factory=list)
    """Status, version by the header, version by the body, text."""

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        async with self.http.request(method, self.url + path, json=body) as answer:
            said = await answer.json()
            assert answer.status < 300, said
            return said

    async def publish(self, seed: int) -> str:
        adapter = write_adapter(self.root / f"adapter-{seed}", lora_tensors(seed=seed))
        version = await self.call("POST", "/v1/versions", {"alias": "vqa", "path": str(adapter)})
        await self.call("POST", "/v1/aliases/vqa/promote", {"version": version["id"]})
        self.weights[version["id"]] = (await self.call("GET", f"/v1/versions/{version['id']}"))["weights_sha256"]
        return str(version["id"])

    async def release(self, model: Path, *, in_place: bool) -> dict[str, Any]:
        """Returns what became of it."""
        name = (await self.call("POST", "/v1/engines/small/release", {"path": str(model), "in_place": in_place}))["id"]
        self.weights[f"{name}@0"] = FakeModel.model_validate_json((model / MODEL_FILE).read_bytes()).weights

        async def is_over() -> bool:
            return not (await self.generation(name))["is_under_way"]

        await until(is_over, timeout_s=60)
        return await self.generation(name)

    async def generation(self, name: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = (await self.call("GET", "/v1/engines/small"))["generations"]
        return next(row for row in rows if row["id"] == name)

    async def in_service(self) -> list[str]:
        replicas = (await self.call("GET", "/v1/replicas"))["data"]
        return [one["id"] for one in replicas if one["in_service"]]

    async def ask(self) -> None:
        body = {"model": "vqa", "messages": MESSAGES, "temperature": 0, "max_tokens": 16}
        async with self.http.post(self.url + CHAT, json=body) as answer:
            said = await answer.json()
            text = said["choices"][0]["message"]["content"] if answer.status == 200 else json.dumps(said)
            self.said.append((answer.status, answer.headers.get("x-tandem-version", ""), said.get("model", ""), text))

    async def ask_on(self) -> None:
        while True:
            await self.ask()

    async def wait_answers(self, number: int) -> None:
        wanted = len(self.said) + number
        await until(lambda: len(self.said) >= wanted, timeout_s=30)

    def check(self, *versions: str) -> None:
        """Every answer is 200, of the version that it names, and versions came in this order."""
        for status, header, model, text in self.said:
            assert (status, header) == (200, model), text
            assert text == complete(self.weights[model], *asked()).text
        assert list(dict.fromkeys(model for _, _, model, _ in self.said)) == list(versions)


def asked() -> tuple[bytes, ChatRequest, int]:
    return prompt_bytes(MESSAGES), ChatRequest(model="any", messages=MESSAGES, temperature=0, max_tokens=16), 0


@asynccontextmanager
async def open_actors(root: Path, num_replicas: int) -> AsyncIterator[LocalActors]:
    engine = {"model": str(write_base(root / "base")), "kind": "fake", "replicas": num_replicas}
    engine["args"] = {"tokens-per-s": 100}
    config = TandemConfig.model_validate(
        {"data": root / "data", "engines": {"small": engine}, "models": {"vqa": {"engine": "small"}}}
    )
    actors = LocalActors(config, root)
    try:
        yield actors
    finally:
        await actors.stop()


@asynccontextmanager
async def open_gateway(actors: LocalActors) -> AsyncIterator[Site]:
    """All replicas in service."""
    async with (
        open_services(actors.config, actors.make) as services,
        listen(build_app(services)) as url,
        aiohttp.ClientSession() as http,
    ):
        num_replicas = actors.config.engines["small"].replicas
        await until(lambda: len(services.routes.snapshot.replicas) == num_replicas, timeout_s=30)
        yield Site(url, http, actors.root, {"small@0": ""})


@asynccontextmanager
async def open_site(root: Path, num_replicas: int) -> AsyncIterator[Site]:
    async with open_actors(root, num_replicas) as actors, open_gateway(actors) as site:
        yield site


@asynccontextmanager
async def load(site: Site) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        clients = [tasks.create_task(site.ask_on()) for _ in range(NUM_CLIENTS)]
        yield
        for client in clients:
            client.cancel()


def new_model(root: Path, seed: int, *, starts: bool = True) -> Path:
    model = write_base(root / f"model-{seed}", seed)
    (model / MODEL_FILE).write_text(FakeModel(weights=f"weights-{seed}", starts=starts).model_dump_json())
    return model


@pytest.mark.parametrize(
    ("num_replicas", "in_place"), [(2, False), pytest.param(2, True, marks=pytest.mark.slow), (1, True)]
)
async def test_a_release_under_load_fails_nobody_and_names_what_answers(
    tmp_path: Path, num_replicas: int, in_place: bool
) -> None:
    async with open_site(tmp_path, num_replicas) as site:
        adapter = await site.publish(1)
        async with load(site):
            await site.wait_answers(NUM_CLIENTS)
            released = await site.release(new_model(tmp_path, 2), in_place=in_place)
            await site.wait_answers(2 * NUM_CLIENTS)
        assert released["state"] == "live", released
        site.check(adapter, released["version"])
        async with site.http.post(f"{site.url}/v1/aliases/vqa/promote", json={"version": adapter}) as answer:
            assert answer.status == 409
        assert await site.publish(3) == "vqa@2"  # one that was verified for the new base


@pytest.mark.slow
@pytest.mark.parametrize(("num_replicas", "in_place"), [(2, False), (1, True)])
async def test_a_model_that_does_not_come_up_changes_nothing(tmp_path: Path, num_replicas: int, in_place: bool) -> None:
    async with open_site(tmp_path, num_replicas) as site:
        async with load(site):
            await site.wait_answers(NUM_CLIENTS)
            released = await site.release(new_model(tmp_path, 2, starts=False), in_place=in_place)
            await site.wait_answers(2 * NUM_CLIENTS)
        assert released["state"] == "failed"
        assert released["reason"]
        site.check("small@0")
        assert await site.in_service() == [f"small/{number}" for number in range(num_replicas)]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "state", "live"), [("swap", "failed", "small@0"), ("flip", "live", "small.g2@0")])
async def test_a_gateway_that_ends_in_a_swap_in_place_is_put_right_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, state: str, live: str
) -> None:
    """It ends once `step` is done, with one of two replicas swapped."""
    reached = hold_after(step, monkeypatch)
    async with open_actors(tmp_path, num_replicas=2) as actors:
        async with open_gateway(actors) as first:
            body = {"path": str(new_model(tmp_path, 2)), "in_place": True}
            name = (await first.call("POST", "/v1/engines/small/release", body))["id"]
            await asyncio.wait_for(reached.wait(), 30)
        monkeypatch.undo()
        async with open_gateway(actors) as second:
            assert (await second.generation(name))["state"] == state
            second.weights[f"{name}@0"] = "weights-2"
            async with load(second):
                await second.wait_answers(2 * NUM_CLIENTS)
            second.check(live)
            assert await second.in_service() == [f"{live.partition('@')[0]}/{number}" for number in (0, 1)]


def hold_after(step: str, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The first release that has done `step` says so and stands there for ever."""
    reached, original = asyncio.Event(), StepClock.step

    @asynccontextmanager
    async def held(clock: StepClock, name: str, of: str = "") -> AsyncIterator[None]:
        async with original(clock, name, of):
            yield
        if name == step:
            reached.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(StepClock, "step", held)
    return reached
