"""Reads an engine's answer after its end: choice 0's text and the usage, from the bytes that went to the client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_DATA = b"data:"
_DONE = b"[DONE]"
# As long as a random number of 64 bits; no longer than its column.
_KEY = re.compile(r"[A-Za-z0-9._:-]{16,64}")


@dataclass(frozen=True, slots=True)
class Transcript:
    """Token counts are 0 where the engine did not say (a stream without `stream_options.include_usage`)."""

    id: str | None
    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int


def read_transcript(body: bytes, *, stream: bool) -> Transcript:
    """`body` may be cut off anywhere, and of any shape; what is whole and as expected in it counts."""
    documents = list(_events(body)) if stream else list(_documents([body]))
    text: list[str] = []
    finish_reason: str | None = None
    usage: dict[str, Any] = {}
    for document in documents:
        usage = _object(document.get("usage")) or usage
        for choice in map(_object, _list(document.get("choices"))):
            if choice.get("index") == 0:
                said = _object(choice.get("delta")) or _object(choice.get("message"))
                text.append(_text(said.get("content")) or "")
                finish_reason = _text(choice.get("finish_reason")) or finish_reason
    identity = next((str(document["id"]) for document in documents if document.get("id")), None)
    counts = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    reason = None if finish_reason is None else _storable(finish_reason)
    return Transcript(identity, _storable("".join(text)), reason, *counts)


def is_key(given_id: str) -> bool:
    """Whether a server's own id can stand for one answer among all: not a mere count, which begins anew with it."""
    return _KEY.fullmatch(given_id) is not None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


def _events(body: bytes) -> Iterable[dict[str, Any]]:
    lines = (line.removeprefix(_DATA).strip() for line in body.splitlines() if line.startswith(_DATA))
    return _documents(line for line in lines if line != _DONE)


def _documents(texts: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    for text in texts:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            continue  # the end of an answer that was cut off
        if isinstance(document, dict):
            yield document


def _storable(text: str) -> str:
    # Databases take neither NUL nor half a surrogate pair.
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")
