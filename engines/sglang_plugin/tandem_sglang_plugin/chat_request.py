"""A chat request as Tandem's engines take it (vLLM's dialect of OpenAI's), and as SGLang takes it."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .refusal import Refusal, bad_request

FORWARDED = frozenset(
    "messages max_tokens max_completion_tokens temperature top_p top_k min_p min_tokens presence_penalty "
    "frequency_penalty repetition_penalty stop stop_token_ids ignore_eos skip_special_tokens logprobs top_logprobs "
    "priority user tools tool_choice parallel_tool_calls response_format".split()
)
"""Fields that mean the same in SGLang. All others reach into it, or are put there below."""
OURS = frozenset("model n seed stream stream_options return_token_ids logit_bias store metadata".split())
NEVER = -1e9
"""What is added to a logit so that its token is never sampled; JSON knows no infinity."""
MAX_SAMPLES = 128
MAX_SEED = 1 << 63
_TOKEN_ID = re.compile(r"0|[1-9][0-9]*")
"""One spelling only: by another, an id that is never sampled would be a key beside ours and be sampled."""


@dataclass(frozen=True)
class Dialect:
    """What SGLang's requests need to be told: the base's name, ids that are never sampled, whether seeds count."""

    base: str
    never_sampled: tuple[int, ...]
    is_seeded: bool


@dataclass(frozen=True)
class ChatRequest:
    """A checked request. `fields` is what all of its samples send to SGLang; a sample is a request of its own there,
    since SGLang counts `n` samples of an adapter wrongly and gives all of them the same seed."""

    version: str
    num_samples: int
    seed: int | None
    is_stream: bool
    wants_usage: bool
    wants_ids: bool
    fields: dict[str, Any]

    def sample(self, index: int) -> dict[str, Any]:
        seed = {} if self.seed is None else {"seed": (self.seed + index) % MAX_SEED}
        return {**self.fields, **seed}


def read_request(raw: bytes, dialect: Dialect) -> ChatRequest:
    """Raises `Refusal`, naming the field at fault. Null is the same as absent, as the OpenAI API has it."""
    document = _parse(raw)
    for name in document:
        if name not in FORWARDED and name not in OURS:
            raise Refusal(400, "unsupported_parameter", f"'{name[:80]}' is not taken; leave it out", param=name[:80])
    version = document.get("model")
    if not isinstance(version, str) or not version:
        raise bad_request("model: a name is needed", "model")
    for url in _media_urls(document.get("messages")):
        if not isinstance(url, str) or not url.startswith("data:"):
            raise bad_request("an image must be a data: URL; the engine fetches no other", "messages")
    is_stream, wants_ids = document.get("stream") is True, document.get("return_token_ids") is True
    if is_stream and wants_ids:
        raise bad_request("return_token_ids does not go together with stream here", "return_token_ids")
    return ChatRequest(
        version=version,
        num_samples=_num_samples(document),
        seed=_seed(document, dialect),
        is_stream=is_stream,
        wants_usage=_wants_usage(document),
        wants_ids=wants_ids,
        fields=_fields(document, version, dialect, is_stream=is_stream),
    )


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise bad_request("the body is not valid JSON", "body") from error
    if not isinstance(document, dict):
        raise bad_request("the body must be a JSON object", "body")
    return {name: value for name, value in document.items() if value is not None}


def _media_urls(messages: Any) -> Iterator[Any]:
    """Of every part that is not text. Raises `Refusal` for parts that are neither text nor image."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "image_url":
                image = part.get("image_url")
                yield image.get("url") if isinstance(image, dict) else image
            elif kind != "text":
                raise bad_request(
                    f"a part of a message is of the kind '{str(kind)[:40]}', not text or image_url", "messages"
                )


def _num_samples(document: dict[str, Any]) -> int:
    number = document.get("n", 1)
    if type(number) is not int or not 1 <= number <= MAX_SAMPLES:
        raise bad_request(f"n must be a whole number from 1 to {MAX_SAMPLES}", "n")
    return number


def _seed(document: dict[str, Any], dialect: Dialect) -> int | None:
    seed = document.get("seed")
    if seed is not None and type(seed) is not int:
        raise bad_request("seed must be a whole number", "seed")
    if not dialect.is_seeded:
        return None  # without deterministic inference SGLang reads it and draws as it likes
    if document.get("min_p"):
        raise bad_request("min_p does not go together with deterministic inference; leave it out", "min_p")
    # With deterministic inference SGLang gives all that name no seed one and the same.
    return secrets.randbits(31) if seed is None else seed % MAX_SEED


def _wants_usage(document: dict[str, Any]) -> bool:
    options = document.get("stream_options", {})
    return isinstance(options, dict) and options.get("include_usage") is True


def _fields(document: dict[str, Any], version: str, dialect: Dialect, *, is_stream: bool) -> dict[str, Any]:
    fields = {name: value for name, value in document.items() if name in FORWARDED}
    if fields.get("top_k") == 0:
        fields["top_k"] = -1  # off
    if bias := _logit_bias(document, dialect):
        fields["logit_bias"] = bias
    # Without a colon SGLang answers any unknown name from the base.
    fields["model"] = version if version == dialect.base else f"{dialect.base}:{version}"
    if is_stream:
        return {**fields, "stream": True, "stream_options": {"include_usage": True}}
    return {**fields, "stream": False, "return_token_ids": True, "return_meta_info": True}


def _logit_bias(document: dict[str, Any], dialect: Dialect) -> dict[str, float]:
    asked = document.get("logit_bias", {})
    if not isinstance(asked, dict) or not all(isinstance(value, int | float) for value in asked.values()):
        raise bad_request("logit_bias must be an object of token ids and numbers", "logit_bias")
    for key in asked:
        if _TOKEN_ID.fullmatch(key) is None:
            raise bad_request(f"logit_bias: '{key[:40]}' is no token id; write it as a plain number", "logit_bias")
    return {**asked, **{str(token_id): NEVER for token_id in dialect.never_sampled}}
