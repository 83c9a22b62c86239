"""The `vllm.endpoint_plugins` entry point: adds the control routes to vLLM's API server."""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from .load import stats
from .refusal import Refusal
from .scoring import score
from .shelf import AdapterShelf, Held

MAX_ADAPTERS_VARIABLE = "TANDEM_MAX_ADAPTERS"
router = APIRouter(prefix="/tandem")


class AddBody(BaseModel):
    version: str
    slot_id: int
    path: str


class PromptBody(BaseModel):
    text: str
    answer: str
    image: str | None
    num_tokens: int


class ProbeBody(BaseModel):
    version: str
    prompts: list[PromptBody]


class TandemPlugin:
    """vLLM makes one, calls `attach_router` while it builds the app and `init_state` once the engine is there."""

    name = "tandem"
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        state.tandem_engine = engine_client
        state.tandem_shelf = AdapterShelf(
            engine_client, state.openai_serving_models, int(os.environ[MAX_ADAPTERS_VARIABLE])
        )


@router.post("/adapters")
async def add(body: AddBody, request: Request) -> JSONResponse:
    async def work() -> dict[str, Any]:
        return _reply(await _shelf(request).add(body.version, body.slot_id, body.path))

    return await _answer(work)


@router.get("/adapters")
async def held(request: Request) -> JSONResponse:
    async def work() -> dict[str, Any]:
        return {"adapters": [_reply(held) for held in await _shelf(request).held()]}

    return await _answer(work)


@router.delete("/adapters/{version}")
async def remove(version: str, request: Request) -> JSONResponse:
    async def work() -> dict[str, Any]:
        await _shelf(request).remove(version)
        return {}

    return await _answer(work)


@router.post("/probe")
async def probe(body: ProbeBody, request: Request) -> JSONResponse:
    chat = request.app.state.openai_serving_chat

    async def work() -> dict[str, Any]:
        calls = (score(chat, body.version, p.text, p.answer, p.image, p.num_tokens) for p in body.prompts)
        return {"scores": list(await asyncio.gather(*calls))}

    return await _answer(work)


@router.get("/stats")
async def load(request: Request) -> JSONResponse:
    return JSONResponse(stats(request.app.state.tandem_engine))


def _shelf(request: Request) -> AdapterShelf:
    shelf: AdapterShelf = request.app.state.tandem_shelf
    return shelf


def _reply(held: Held) -> dict[str, Any]:
    return {"version": held.version, "slot_id": held.slot_id, "sha256": held.sha256, "modules": list(held.modules)}


async def _answer(work: Callable[[], Awaitable[dict[str, Any]]]) -> JSONResponse:
    try:
        return JSONResponse(await work())
    except Refusal as refusal:
        error = {"message": refusal.message, "type": "invalid_request_error", "param": None, "code": refusal.code}
        return JSONResponse({"error": error}, status_code=refusal.status)
