"""An application with SGLang's HTTP as far as the gate uses it, and with its habits: no model, steps made on demand.

It answers unknown names from the base, loads again what was unloaded, waits in an unload for requests it counts, and
counts for ever those whose client it saw leave. For what a recording can't hold: races and deadlines.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

NUM_TOKENS = 3
Answer = Callable[[Request], Awaitable[JSONResponse]]


class ScriptedSglang:
    """`is_stuck`: loads never return. `is_held`: answers do not end until they are aborted. `asked` is what came.

    `silent` are paths that never answer, `failing` those that answer 500; the next `lost_aborts` aborts never answer,
    and have no effect.
    """

    def __init__(self) -> None:
        self.is_stuck = False
        self.is_held = False
        self.silent: set[str] = set()
        self.failing: set[str] = set()
        self.lost_aborts = 0
        self.asked: list[dict[str, Any]] = []
        self.paths: dict[str, str] = {}
        self.users: Counter[str] = Counter()
        self._aborted: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Condition()
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._unless_set(self._models)),
                Route("/v1/loads", self._unless_set(self._loads)),
                Route("/load_lora_adapter", self._load, methods=["POST"]),
                Route("/unload_lora_adapter", self._unload, methods=["POST"]),
                Route("/abort_request", self._abort, methods=["POST"]),
                Route("/generate", self._generate, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    async def settle(self, adapter: str) -> None:
        async with self._changed:
            self.users.pop(adapter, None)
            self._changed.notify_all()

    def _unless_set(self, answer: Answer) -> Answer:
        async def meddled(request: Request) -> JSONResponse:
            if request.url.path in self.silent:
                await asyncio.Event().wait()
            if request.url.path in self.failing:
                return JSONResponse({"error": {"message": "a fault was set"}}, status_code=500)
            return await answer(request)

        return meddled

    async def _health(self, request: Request) -> JSONResponse:
        return JSONResponse(None)

    async def _models(self, request: Request) -> JSONResponse:
        adapters = [{"id": name, "parent": "small@0"} for name in self.paths]
        return JSONResponse({"data": [{"id": "small@0", "parent": None}, *adapters]})

    async def _loads(self, request: Request) -> JSONResponse:
        return JSONResponse({"loads": [{"num_waiting_reqs": 0, "token_usage": 0.25}]})

    async def _load(self, request: Request) -> JSONResponse:
        body = await request.json()
        if self.is_stuck:
            await asyncio.Event().wait()
        self.paths[body["lora_name"]] = body["lora_path"]
        return JSONResponse({"success": True})

    async def _unload(self, request: Request) -> JSONResponse:
        name = (await request.json())["lora_name"]
        async with self._changed:
            await self._changed.wait_for(lambda: not self.users[name])
        del self.paths[name]
        return JSONResponse({"success": True})

    async def _abort(self, request: Request) -> JSONResponse:
        if self.lost_aborts:
            self.lost_aborts -= 1
            await asyncio.Event().wait()
        if (event := self._aborted.get((await request.json())["rid"])) is not None:
            event.set()
        return JSONResponse(None)

    async def _generate(self, request: Request) -> JSONResponse:
        body = await request.json()
        self.asked.append(body)
        await self._until_it_may_end(self._aborted.setdefault(body["rid"], asyncio.Event()))
        entries = [[None, 1, None], *([-float(number), number, None] for number in range(2, 9))]
        return JSONResponse({"meta_info": {"input_token_logprobs": entries}})

    async def _chat(self, request: Request) -> Any:
        body = await request.json()
        self.asked.append(body)
        if body.get("max_tokens", 1) > 100_000:
            return JSONResponse({"object": "error", "message": "too large: 1000000", "code": 400}, status_code=400)
        adapter = body["model"].partition(":")[2]
        aborted = self._aborted.setdefault(body["rid"], asyncio.Event())
        self.users[adapter] += 1
        if body["stream"]:
            return StreamingResponse(self._events(body, adapter, aborted), media_type="text/event-stream")
        await self._until_it_may_end(aborted)
        await self._done(adapter)
        return JSONResponse(_whole(body, aborted))

    async def _events(self, body: dict[str, Any], adapter: str, aborted: asyncio.Event) -> Any:
        for place in range(NUM_TOKENS):
            delta = {"role": "assistant", "content": ""} if place == 0 else {"content": f" {place}"}
            yield _event({"id": body["rid"], "model": body["model"], "choices": [_delta(delta, None)]})
        await self._until_it_may_end(aborted)
        await self._done(adapter)
        end = _delta({}, "abort" if aborted.is_set() else "stop")
        yield _event({"id": body["rid"], "model": body["model"], "choices": [end]})
        yield _event({"id": body["rid"], "model": body["model"], "choices": [], "usage": _usage()})
        yield "data: [DONE]\n\n"

    async def _until_it_may_end(self, aborted: asyncio.Event) -> None:
        if self.is_held:
            await aborted.wait()

    async def _done(self, adapter: str) -> None:
        async with self._changed:
            self.users[adapter] -= 1
            self._changed.notify_all()


def _whole(body: dict[str, Any], aborted: asyncio.Event) -> dict[str, Any]:
    entries = [[-0.5, number, str(number)] for number in range(NUM_TOKENS)]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": " 1 2", "reasoning_content": None, "tool_calls": None},
        "logprobs": {"content": [{"token": text, "logprob": value} for value, _, text in entries]},
        "finish_reason": "abort" if aborted.is_set() else "stop",
        "token_ids": list(range(NUM_TOKENS)),
        "prompt_token_ids": [1, 2],
        "meta_info": {"output_token_logprobs": entries},
    }
    return {"id": body["rid"], "model": body["model"], "choices": [choice], "usage": _usage()}


def _usage() -> dict[str, Any]:
    return {"prompt_tokens": 2, "completion_tokens": NUM_TOKENS, "prompt_tokens_details": {"cached_tokens": 1}}


def _delta(delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
