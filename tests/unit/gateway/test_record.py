from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway_stack import CHAT, Stack, faults, image_part, listen, open_stack, picture, until

from engines.errors import NotFound
from engines.fake import FakeEngine
from gateway.record import Exchange
from gateway.schemas import ChatRequest, parse_chat
from gateway.store import Interactions
from gateway.transcript import read_transcript


@pytest.mark.parametrize("stream", [True, False])
async def test_recorded_is_what_was_asked_and_answered(stack: Stack, stream: bool) -> None:
    content = picture(size=(20, 20))
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    response = await stack.chat([image_part(content), {"type": "text", "text": "shape?"}], **options)
    said = read_transcript(response.content, stream=stream)
    row = (await stack.http.get(f"/v1/interactions/{said.id}")).json()
    sha256 = hashlib.sha256(content).hexdigest()
    assert row["answer"] == said.text != ""
    assert row["request"]["messages"][0]["content"][0]["image_url"]["url"] == f"sha256:{sha256}"
    assert (row["model"], row["version"], row["replica"], row["stream"]) == ("vqa", "small@0", "small/0", stream)
    assert row["images"] == [sha256]
    assert row["usage"]["completion_tokens"] == said.completion_tokens > 0
    assert row["finish_reason"] == "stop"
    assert 0 < row["ttft_ms"] <= row["latency_ms"]
    assert stack.services.images.read(sha256) == content


async def test_row_is_committed_within_200_ms(stack: Stack) -> None:
    identity = (await stack.chat()).json()["id"]
    assert await stack.services.recorder.wait_for(identity, 0.2)
    assert stack.services.store.interactions.get(identity).status == 200


async def test_store_false_leaves_no_row_no_image_and_takes_no_feedback(stack: Stack) -> None:
    content = picture(size=(21, 13))
    identity = (await stack.chat([image_part(content)], store=False)).json()["id"]
    later = (await stack.chat()).json()["id"]
    assert await stack.services.recorder.wait_for(later, 5)  # whatever was queued before it is written by now
    assert (await stack.http.get(f"/v1/interactions/{identity}")).status_code == 404
    with pytest.raises(NotFound):
        stack.services.images.read(hashlib.sha256(content).hexdigest())
    body = {"completion_id": identity, "metric": "thumb", "value": True}
    assert (await stack.http.post("/v1/feedback", json=body)).status_code == 404


async def test_cut_off_stream_is_recorded_as_far_as_it_came(stack: Stack, url: str, engine: FakeEngine) -> None:
    body = {"model": "vqa", "messages": [{"role": "user", "content": "cut"}], "stream": True}
    async with faults(engine.endpoint, hang_after_tokens=2), aiohttp.ClientSession() as session:
        async with session.post(url + CHAT, json=body) as response:
            seen = await response.content.readuntil(b"\n\n")
        identity = json.loads(seen.removeprefix(b"data: "))["id"]
        await until(lambda: stack.services.drain.num_in_flight == 0)
    row = (await stack.http.get(f"/v1/interactions/{identity}")).json()
    assert (row["status"], row["finish_reason"]) == (499, None)


async def test_feedback_on_a_running_stream_waits_for_its_row(stack: Stack, url: str, engine: FakeEngine) -> None:
    body = {"model": "vqa", "messages": [{"role": "user", "content": "early"}], "stream": True}
    async with aiohttp.ClientSession() as session, faults(engine.endpoint, hang_after_tokens=1):
        async with session.post(url + CHAT, json=body) as response:
            seen = await response.content.readuntil(b"\n\n")
            signal = {"completion_id": json.loads(seen.removeprefix(b"data: "))["id"], "metric": "thumb", "value": True}
            early = asyncio.create_task(stack.http.post("/v1/feedback", json=signal))
            done, _ = await asyncio.wait({early}, timeout=0.1)
            assert not done
        assert (await early).status_code == 201


async def test_feedback_does_not_wait_for_ever(tmp_path: Path, engine: FakeEngine) -> None:
    async with open_stack(tmp_path, engine.endpoint, feedback_wait_s=0.05) as alone:
        alone.services.recorder.begin("chatcmpl-endless")
        signal = {"completion_id": "chatcmpl-endless", "metric": "thumb", "value": True}
        assert (await alone.http.post("/v1/feedback", json=signal)).status_code == 504


async def test_overfull_queue_drops_and_counts(tmp_path: Path, engine: FakeEngine) -> None:
    async with open_stack(tmp_path, engine.endpoint, max_queued_bytes=1024) as alone:
        identity = (await alone.chat([image_part(picture(size=(64, 64), compress_level=0))])).json()["id"]
        assert (await alone.http.get(f"/v1/interactions/{identity}")).status_code == 404
        text = (await alone.http.get("/metrics")).text
    assert 'tandem_records_dropped_total{reason="queue_full"} 1.0' in text


async def test_row_that_cannot_be_stored_leaves_its_neighbours_alone(tmp_path: Path, engine: FakeEngine) -> None:
    async with open_stack(tmp_path, engine.endpoint) as alone:
        identity = (await alone.chat()).json()["id"]
        await alone.services.recorder.wait_for(identity, 5)
        rows: Interactions = alone.services.store.interactions
        kept = rows.get(identity)
        recorder = alone.services.recorder
        exchanges = [replace(_exchange(alone, kept.id), id=name) for name in ("chatcmpl-a", identity, "chatcmpl-b")]
        recorder._write(exchanges)
        assert rows.get("chatcmpl-a").answer == rows.get("chatcmpl-b").answer == ""
        assert 'reason="store_failed"} 1.0' in alone.services.metrics.render().decode()


async def test_an_exchange_that_cannot_even_be_read_is_dropped_and_the_next_is_stored(
    tmp_path: Path, engine: FakeEngine
) -> None:
    async with open_stack(tmp_path, engine.endpoint) as alone:
        recorder = alone.services.recorder
        recorder.begin("chatcmpl-bad")
        recorder.finish(replace(_exchange(alone, "chatcmpl-bad"), request=b"\xff"))
        assert await recorder.wait_for("chatcmpl-bad", 5)
        identity = (await alone.chat()).json()["id"]
        assert await recorder.wait_for(identity, 5)
        assert alone.services.store.interactions.get(identity).id == identity
        assert recorder._queued_bytes == 0
        assert 'tandem_records_dropped_total{reason="store_failed"} 1.0' in alone.services.metrics.render().decode()


async def test_what_waits_holds_an_image_once_and_counts_it(stack: Stack) -> None:
    content = picture(size=(64, 64), compress_level=0)
    request = _request(stack, [image_part(content)])
    waiting = replace(_exchange(stack, "chatcmpl-x"), request=request.recorded, images=request.images)
    held = [getattr(waiting, field.name) for field in fields(waiting)]
    assert request.fields not in held
    assert len(content) < waiting.num_bytes < len(content) + 500


def _request(stack: Stack, content: Any) -> ChatRequest:
    body = json.dumps({"model": "vqa", "messages": [{"role": "user", "content": content}]}).encode()
    return parse_chat(body, stack.services.config.gateway)


def _exchange(stack: Stack, identity: str) -> Exchange:
    target = stack.services.routes.resolve("vqa")
    recorded = _request(stack, "x").recorded
    return Exchange(identity, datetime.now(UTC), target, recorded, (), False, b"{}", 0.0, 0.0, 200)


async def test_close_writes_what_is_queued(tmp_path: Path, engine: FakeEngine) -> None:
    async with open_stack(tmp_path, engine.endpoint) as alone, listen(alone.app):
        ids = [(await alone.chat(f"question {n}")).json()["id"] for n in range(5)]
        await alone.services.recorder.close()
        assert [alone.services.store.interactions.get(identity).id for identity in ids] == ids


def test_transcript_of_a_stream_cut_in_an_event_keeps_the_rest() -> None:
    whole = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"red"}}]}\n\n'
    said = read_transcript(whole + b'data: {"id":"chatcmpl-1","choi', stream=True)
    assert (said.id, said.text, said.finish_reason) == ("chatcmpl-1", "red", None)


def test_transcript_is_storable_whatever_the_engine_says() -> None:
    body = b'{"choices":[{"index":0,"message":{"content":"a\\u0000b\\ud800"}}]}'
    read_transcript(body, stream=False).text.encode("utf-8")
    assert "\x00" not in read_transcript(body, stream=False).text


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"index": 0, "message": {"content": [{"type": "text", "text": "x"}]}}]},
        {"choices": [{"index": 0, "message": "x", "delta": 7, "finish_reason": {"a": 1}}]},
        {"choices": ["x", None, 3]},
        {"choices": 5, "usage": [1]},
        {"usage": {"prompt_tokens": "many", "completion_tokens": [1]}},
        {"usage": {"prompt_tokens": 10**30, "completion_tokens": -1}},
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_transcript_of_an_odd_answer_takes_what_is_as_expected(answer: dict[str, Any], stream: bool) -> None:
    good = {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "red"}}], "usage": {"prompt_tokens": 3}}
    body = b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in (good, answer))
    said = read_transcript(body if stream else json.dumps(answer).encode(), stream=stream)
    assert (said.text, said.finish_reason, said.completion_tokens) == ("red" if stream else "", None, 0)


def test_transcript_of_a_bottomless_answer_is_empty() -> None:
    assert read_transcript(b"[" * 100_000, stream=False).text == ""
