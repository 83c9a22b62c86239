"""The fake's process: faults on demand, a record of aborts, probes as a manifest says."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from engines.config import EngineConfig
from engines.errors import AdapterRefused, EngineDown, EngineFault
from engines.fake import FakeEngine
from engines.fake.faults import Faults
from engines.lifeline import group_members
from engines.types import AdapterRef, EngineState, ProbePrompt, VersionName

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


def write_adapter(directory: Path, probe: list[dict[str, Any]]) -> AdapterRef:
    header = json.dumps({"base_model.model.x.q_proj.lora_A.weight": {}}).encode()
    directory.mkdir()
    (directory / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (directory / "adapter_config.json").write_text('{"r": 8}')
    (directory / "manifest.json").write_text(json.dumps({"probe": probe}))
    return AdapterRef(VersionName("vqa", 1), 1, directory)


async def chat(engine: FakeEngine, http: aiohttp.ClientSession, request_id: str = "r") -> tuple[int, bytes]:
    body = {"model": "small@0", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {engine.endpoint.token}", "X-Request-Id": request_id}
    url = f"{engine.endpoint.url}/v1/chat/completions"
    async with http.post(url, json={**body, "stream": True}, headers=headers) as answer:
        return answer.status, await answer.read()


async def test_a_refused_load_leaves_nothing(engine: FakeEngine, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", [])
    await engine.set_faults(Faults(load_fails=True))
    with pytest.raises(AdapterRefused, match="a fault was set"):
        await engine.load_adapter(adapter)
    assert await engine.list_adapters() == ()
    await engine.set_faults(Faults())
    assert (await engine.load_adapter(adapter)).modules == ("x.q_proj",)


async def test_chat_answers_the_status_that_was_set(engine: FakeEngine) -> None:
    await engine.set_faults(Faults(chat_status=500))
    async with aiohttp.ClientSession() as http:
        assert (await chat(engine, http))[0] == 500


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


async def test_a_probe_answers_as_the_manifest_says(engine: FakeEngine, tmp_path: Path) -> None:
    record = {
        "text": "q", "answer": "a", "image": None, "num_tokens": 2, "token_ids": [5, 6],
        "base_logprobs": [-2.0, -1.0], "adapter_logprobs": [-0.5, -0.25],
    }  # fmt: skip
    adapter = write_adapter(tmp_path / "adapter", [record])
    await engine.load_adapter(adapter)
    prompt = (ProbePrompt("q", "a", None, 2),)
    (base,) = await engine.probe(engine.base, prompt)
    (ours,) = await engine.probe(adapter.version, prompt)
    assert (base.token_ids, base.logprobs) == ((5, 6), (-2.0, -1.0))
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
