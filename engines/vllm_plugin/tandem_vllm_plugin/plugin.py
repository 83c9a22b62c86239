"""The `vllm.endpoint_plugins` entry point: adds the control routes to vLLM's API server."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from .load import stats
from .refusal import Refusal
from .scoring import score
from .shelf import AdapterShelf, Held
from .weights import BaseWeights

MAX_ADAPTERS_VARIABLE = "TANDEM_MAX_ADAPTERS"
LOG_LEVEL_VARIABLE = "TANDEM_PLUGIN_LOG_LEVEL"
MAX_PROBE_PROMPTS = 64
PROBES_AT_ONCE = 8
router = APIRouter(prefix="/tandem")
_log = logging.getLogger("tandem_vllm_plugin")


class Body(BaseModel):
    """Unknown keys are errors, as on Tandem's side."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AddBody(Body):
    version: str
    slot_id: int
    path: str


class PromptBody(Body):
    text: str
    answer: str
    image: str | None
    num_tokens: int


class ProbeBody(Body):
    version: str
    prompts: list[PromptBody] = Field(max_length=MAX_PROBE_PROMPTS)


class WeightsBody(Body):
    path: str
    base: str


class TandemPlugin:
    """vLLM makes one, calls `attach_router` while it builds the app and `init_state` once the engine is there."""

    name = "tandem"
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        if level := os.environ.get(LOG_LEVEL_VARIABLE):  # INFO says how long loads and probes take
            logging.basicConfig()
            _log.setLevel(level)
        state.tandem_engine = engine_client
        state.tandem_shelf = AdapterShelf(
            engine_client, state.openai_serving_models, int(os.environ[MAX_ADAPTERS_VARIABLE])
        )
        state.tandem_weights = BaseWeights(engine_client, state.openai_serving_models, state.tandem_shelf)


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


@router.delete("/adapters/{version:path}")  # the server has decoded a step's %2F
async def remove(version: str, request: Request) -> JSONResponse:
    async def work() -> dict[str, Any]:
        await _shelf(request).remove(version)
        return {}

    return await _answer(work)


@router.post("/probe")
async def probe(body: ProbeBody, request: Request) -> JSONResponse:
    chat = request.app.state.openai_serving_chat

    places = asyncio.Semaphore(PROBES_AT_ONCE)  # a probe must not push the users' requests out of the batch

    async def score_one(prompt: PromptBody) -> dict[str, Any]:
        async with places:
            return await score(chat, body.version, prompt.text, prompt.answer, prompt.image, prompt.num_tokens)

    async def work() -> dict[str, Any]:
        start_s = time.perf_counter()
        scores = list(await asyncio.gather(*map(score_one, body.prompts)))
        _log.info("%s: %d prompts scored in %.3f s", body.version, len(scores), time.perf_counter() - start_s)
        return {"scores": scores}

    return await _answer(work)


@router.post("/pause")
async def pause(request: Request) -> JSONResponse:
    return await _answer(_weights(request).pause)


@router.post("/weights")
async def swap(body: WeightsBody, request: Request) -> JSONResponse:
    return await _answer(lambda: _weights(request).swap(body.path, body.base))


@router.post("/resume")
async def resume(request: Request) -> JSONResponse:
    return await _answer(_weights(request).resume)


@router.get("/stats")
async def load(request: Request) -> JSONResponse:
    return JSONResponse(stats(request.app.state.tandem_engine))


def _shelf(request: Request) -> AdapterShelf:
    shelf: AdapterShelf = request.app.state.tandem_shelf
    return shelf


def _weights(request: Request) -> BaseWeights:
    weights: BaseWeights = request.app.state.tandem_weights
    return weights


def _reply(held: Held) -> dict[str, Any]:
    return {"version": held.version, "slot_id": held.slot_id, "sha256": held.sha256, "modules": list(held.modules)}


async def _answer(work: Callable[[], Awaitable[dict[str, Any]]]) -> JSONResponse:
    try:
        return JSONResponse(await work())
    except Refusal as refusal:
        _log.warning("%s: %s", refusal.message, refusal.detail)
        error = {"message": refusal.message, "type": "invalid_request_error", "param": None, "code": refusal.code}
        return JSONResponse({"error": {**error, "detail": refusal.detail}}, status_code=refusal.status)
