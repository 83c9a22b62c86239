"""A plain HTTP client of an engine's chat route, for the contract suite."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from PIL import Image, ImageDraw

from engines.types import Endpoint


@dataclass(frozen=True)
class Said:
    """One answer: its text, the log-probabilities of its tokens, and the whole body."""

    text: str
    logprobs: tuple[float, ...]
    body: dict[str, Any]


def session(endpoint: Endpoint, token: str | None = None) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {endpoint.token if token is None else token}"}
    return aiohttp.ClientSession(endpoint.url, headers=headers, timeout=aiohttp.ClientTimeout(total=60))


def picture(colour: str) -> str:
    """A `data:` URL of a disc on white, 64x64."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill=colour)
    raw = io.BytesIO()
    image.save(raw, "PNG")
    return "data:image/png;base64," + base64.b64encode(raw.getvalue()).decode()


def request(model: str, text: str, image: str | None = None, **fields: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": image}})
    fixed = {"temperature": 0, "max_tokens": 8, "logprobs": True}
    return {"model": model, "messages": [{"role": "user", "content": parts}], **fixed, **fields}


async def ask(endpoint: Endpoint, body: dict[str, Any], **headers: str) -> Said:
    async with session(endpoint) as http, http.post("/v1/chat/completions", json=body, headers=headers) as answer:
        said = await answer.json()
        assert answer.status == 200, said
    choice = said["choices"][0]
    return Said(choice["message"]["content"], tuple(t["logprob"] for t in choice["logprobs"]["content"]), said)


async def status_of(endpoint: Endpoint, body: dict[str, Any]) -> int:
    async with session(endpoint) as http, http.post("/v1/chat/completions", json=body) as answer:
        await answer.read()
        return answer.status


async def ask_streaming(endpoint: Endpoint, body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The text of all deltas, and the events."""
    wanted = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with session(endpoint) as http, http.post("/v1/chat/completions", json=wanted) as answer:
        lines = (await answer.text()).split("\n\n")
    assert [line for line in lines if line][-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]
    text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    return text, events


async def hang_up_after_first_token(endpoint: Endpoint, body: dict[str, Any], request_id: str) -> None:
    headers = {"X-Request-Id": request_id}
    async with (
        session(endpoint) as http,
        http.post("/v1/chat/completions", json={**body, "stream": True}, headers=headers) as answer,
    ):
        assert answer.status == 200
        await answer.content.readuntil(b"\n\n")
        answer.close()


async def eventually(holds: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    """Polls a condition until it holds; fails after `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110  another process's state has no event of ours
            await asyncio.sleep(0.02)
