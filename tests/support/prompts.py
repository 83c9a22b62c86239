"""A question with pictures, and what an engine answers it: the same prompt for an engine and for transformers."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from engines.types import Endpoint, VersionName

MAX_TOKENS = 16
TIMEOUT_S = 100.0


@dataclass(frozen=True)
class Prompt:
    """Pictures first, then the text, in one user turn."""

    text: str
    images: tuple[Path, ...] = ()

    def messages(self) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(p)}} for p in self.images]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}]


@dataclass(frozen=True)
class Answer:
    """The sampled tokens (the end of the turn included) with their log-probabilities, and what the prompt was."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    num_cached: int


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def client_of(endpoint: Endpoint) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.token, timeout=TIMEOUT_S, max_retries=0)


async def ask(client: AsyncOpenAI, version: VersionName, prompt: Prompt, **extra: Any) -> Answer:
    """Greedy. `extra` are vLLM's own fields."""
    said = await client.chat.completions.create(
        model=str(version),
        messages=prompt.messages(),  # type: ignore[arg-type]
        temperature=0,
        max_tokens=MAX_TOKENS,
        logprobs=True,
        extra_body={"return_token_ids": True, **extra},
    )
    assert said.model == str(version)
    raw, choice = said.model_dump(), said.model_dump()["choices"][0]
    return Answer(
        prompt_ids=tuple(raw["prompt_token_ids"]),
        token_ids=tuple(choice["token_ids"]),
        logprobs=tuple(entry["logprob"] for entry in choice["logprobs"]["content"]),
        num_cached=raw["usage"]["prompt_tokens_details"]["cached_tokens"],
    )
