"""A chat request as the fake reads it, and its answer: a function of the adapter's hash and the messages."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field

from engines.errors import BadRequest

WORDS = tuple(
    "amber basil cedar delta ember fjord glade haven indigo jasper kelp lilac maple nectar onyx pearl quartz river "
    "sable tundra umber violet willow yarrow zephyr coral dune fern grove heath iris juniper".split()
)
MIN_TOKENS, TOKEN_SPREAD = 3, 10
DEFAULT_MAX_TOKENS = 256


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The fields that the fake honours; others pass unread, as a sampler's knobs have no effect on it."""

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = 1.0
    seed: int | None = None
    n: int = Field(1, ge=1)
    stop: str | list[str] | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    ignore_eos: bool = False
    return_token_ids: bool = False
    priority: int = 0
    """Taken and without effect: nothing ever waits in the fake."""

    def limit(self) -> int:
        return self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of text, its id, and its log-probability (natural)."""

    text: str
    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Completion:
    """All tokens of one choice, and why they end."""

    tokens: tuple[Token, ...]
    finish_reason: str

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


def prompt_bytes(messages: Sequence[dict[str, Any]]) -> bytes:
    """The messages in one canonical form, images decoded and hashed; raises `BadRequest` for a bad image."""
    plain = [{"role": message.get("role"), "content": _content(message.get("content"))} for message in messages]
    return json.dumps(plain, sort_keys=True).encode()


def prompt_ids(prompt: bytes) -> tuple[int, ...]:
    """Token ids of a prompt's bytes: four of them are a token."""
    return tuple((prompt + b"\0")[::4])


def complete(adapter_sha256: str, prompt: bytes, request: ChatRequest, index: int) -> Completion:
    """Choice `index`. Sampled answers (temperature above 0) depend on seed + index too."""
    is_sampled = request.temperature > 0 and (request.seed is not None or request.n > 1)
    sampled = str((request.seed or 0) + index) if is_sampled else ""
    seed = hashlib.sha256(f"{adapter_sha256}|{sampled}|".encode() + prompt).digest()
    natural = MIN_TOKENS + seed[0] % TOKEN_SPREAD
    limit = request.limit()
    count = limit if request.ignore_eos else min(natural, limit)
    tokens: list[Token] = []
    for place in range(count):
        tokens.append(_token(seed, place))
        if any(stop in "".join(token.text for token in tokens) for stop in request.stops()):
            return Completion(tuple(tokens[:-1]), "stop")
    return Completion(tuple(tokens), "length" if request.ignore_eos or natural > limit else "stop")


def _token(seed: bytes, place: int) -> Token:
    digest = hashlib.sha256(seed + place.to_bytes(4, "big")).digest()
    number = digest[0] % len(WORDS)
    word, logprob = WORDS[number], -(digest[1] + 1) / 256
    return Token(word, number, logprob) if place == 0 else Token(f" {word}", len(WORDS) + number, logprob)


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return [content]
    return [_part(part) if isinstance(part, dict) else part for part in content]


def _part(part: dict[str, Any]) -> Any:
    if part.get("type") == "text":
        return part.get("text")
    if part.get("type") == "image_url":
        image = part.get("image_url")
        return {"image": _image_sha256(image.get("url", "") if isinstance(image, dict) else str(image))}
    return part


def _image_sha256(url: str) -> str:
    head, _, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise BadRequest("image_url is not a base64 data: URL of an image", param="messages")
    try:
        return hashlib.sha256(base64.b64decode(data, validate=True)).hexdigest()
    except binascii.Error as error:
        raise BadRequest(f"image_url holds no valid base64: {error}", param="messages") from error
