"""An engine's chat route over a real socket: answers in vLLM's shape, and faults where a test wants them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from engines.types import Endpoint, VersionName
from rollout.messages import Message, Text
from rollout.types import Prompt, Target, Task

VERSION = VersionName("grpo.1.step", 3)
TOKEN = "secret"
PROMPT_IDS = [1, 2, 3]
Edit = Callable[[dict[str, Any]], Any]
"""Changes an answer, or replaces it: by a status, by "reset" or by "hang"."""


def nothing(answer: dict[str, Any]) -> None:
    return None


@dataclass
class ScriptedEngine:
    """Answers with `texts` in turn; `edits` are used up one a request, then answers are sound."""

    name: str
    texts: list[str] = field(default_factory=lambda: ["teal"])
    edits: list[Edit] = field(default_factory=list)
    always: Edit = nothing
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    @property
    def target(self) -> Target:
        return Target(self.name, Endpoint(self.url, TOKEN))

    async def chat(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        self.bodies.append(body)
        self.headers.append(http.headers)
        answer = answer_to(body, self.texts, len(self.bodies) - 1)
        edit = self.edits.pop(0) if self.edits else self.always
        match edit(answer):
            case int() as status:
                return web.json_response({"error": {"message": "as scripted", "code": status}}, status=status)
            case "reset":
                assert http.transport is not None
                http.transport.abort()
            case "hang":
                await self._hang()
        return web.Response(body=json.dumps(answer).encode(), content_type="application/json")

    async def _hang(self) -> None:
        self.hanging.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.aborted.set()
            raise


def answer_to(body: dict[str, Any], texts: list[str], number: int) -> dict[str, Any]:
    """What vLLM answers with `return_token_ids` and `logprobs`."""
    choices = [choice(index, texts[(number + index) % len(texts)]) for index in range(body["n"])]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": choices,
        "usage": {"prompt_tokens": 3, "completion_tokens": 2 * len(choices), "total_tokens": 3 + 2 * len(choices)},
        "prompt_logprobs": None,
        "prompt_token_ids": PROMPT_IDS,
    }


def choice(index: int, text: str) -> dict[str, Any]:
    pieces = [(text, -0.25), ("<|im_end|>", -0.5)]
    content = [
        {"token": piece, "logprob": logprob, "bytes": list(piece.encode()), "top_logprobs": []}
        for piece, logprob in pieces
    ]
    return {
        "index": index,
        "message": {"role": "assistant", "content": text, "refusal": None, "tool_calls": []},
        "logprobs": {"content": content},
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": [100 + index, 7],
    }


@asynccontextmanager
async def open_engine(name: str = "small/0", **scripted: Any) -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine(name, **scripted)
    app = web.Application(client_max_size=1 << 24)
    app.add_routes([web.post("/v1/chat/completions", engine.chat)])
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        engine.url = site.name.rstrip("/")
        yield engine
    finally:
        await runner.cleanup()


def prompt(**fields: Any) -> Prompt:
    return Prompt("row-7", (Message("user", (Text("which colour?"),)),), fields or {"answer": "teal"})


def task(*targets: Target, num_samples: int = 4) -> Task:
    return Task(prompt(), VERSION, targets, num_samples)


def status(code: int) -> Edit:
    return lambda answer: code


def said(word: str) -> Edit:
    return lambda answer: word


def with_choice(**changes: Any) -> Edit:
    """Changes the first choice."""
    return lambda answer: answer["choices"][0].update(changes)


def with_logprob(value: float | None) -> Edit:
    def edit(answer: dict[str, Any]) -> None:
        answer["choices"][0]["logprobs"]["content"][1]["logprob"] = value

    return edit


def with_top(**changes: Any) -> Edit:
    return lambda answer: answer.update(changes)


def without_choices(num_left: int) -> Edit:
    return lambda answer: answer["choices"].__delitem__(slice(num_left, None))
