"""The engine's half of a probe: one engine for one model, asked a text, an image, and the learner's fixed answers."""

from __future__ import annotations

from pathlib import Path

import aiohttp
from pydantic import BaseModel, Field, ValidationError

from engines.backends import build_engine
from engines.config import EngineConfig
from engines.errors import DeadlineExceeded, EngineDown, EngineFault
from engines.profiles import FamilyProfile
from engines.protocol import Engine
from engines.types import Endpoint, VersionName
from engines.vllm import VllmEngine

NAME = "probed"
MAX_TOKENS = 8
ANSWER_TIMEOUT_S = 120.0


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class ProbedEngine(VllmEngine):
    """vLLM for a model whose profile was found by looking, not in the table."""

    def __init__(self, name: str, config: EngineConfig, log_dir: Path, profile: FamilyProfile) -> None:
        super().__init__(name, config, log_dir)
        self._profile = profile

    def family(self) -> FamilyProfile:
        return self._profile


def engine_for(config: EngineConfig, log_dir: Path, profile: FamilyProfile | None) -> Engine:
    """`profile` is None for a family of the table."""
    if profile is not None and config.kind == "vllm":
        return ProbedEngine(NAME, config, log_dir, profile)
    return build_engine(NAME, config, log_dir)


async def ask(engine: Engine, text: str, image: str | None) -> str:
    """A short greedy answer of the bare base.

    Raises `EngineDown` without a connection, `DeadlineExceeded` without an answer, `EngineFault` for another one.
    """
    parts: list[dict[str, object]] = [{"type": "text", "text": text}]
    if image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": image}})
    body = {
        "model": str(VersionName(NAME, 0)),
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    try:
        status, raw = await _post(engine.endpoint, body)
    except TimeoutError as error:
        raise DeadlineExceeded(f"it did not answer within {ANSWER_TIMEOUT_S:g} s") from error
    except aiohttp.ClientError as error:
        raise EngineDown("its connection broke before it answered", detail=repr(error)) from error
    if status != 200:
        raise EngineFault(f"it answered {status}", detail=raw[:500].decode(errors="replace"))
    return _text_of(raw)


async def _post(endpoint: Endpoint, body: dict[str, object]) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {endpoint.token}"}
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(endpoint.url, headers=headers, timeout=timeout) as http,
        http.post("/v1/chat/completions", json=body) as answer,
    ):
        return answer.status, await answer.read()


def _text_of(raw: bytes) -> str:
    try:
        return _Completion.model_validate_json(raw).choices[0].message.content or ""
    except ValidationError as error:
        raise EngineFault("its answer is no chat completion", detail=raw[:500].decode(errors="replace")) from error
