"""The text of a request: every string of it, keys too, is counted and looked through for control tokens.

Templates put more than a message's content into the prompt: names, tools and their descriptions, a call's arguments.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from engines.errors import BadRequest, TooLarge
from engines.profiles import PROFILES
from gateway.config import GatewayConfig

_ROLE_TOKENS = ("<|im_start|>", "<|im_end|>")
# A tokenizer reads these in a user's text as control tokens: an image that is not there, a turn nobody took.
CONTROL_TOKENS = tuple(sorted({*_ROLE_TOKENS, *(t for profile in PROFILES.values() for t in profile.vision_tokens)}))
_TOKEN = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))
# Engines parse a call's arguments before the template sees them.
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
# Compared with the answer only.
_UNPROMPTED = frozenset({"stop"})


def check_text(document: Mapping[str, Any], config: GatewayConfig) -> None:
    """Raises `TooLarge` or `BadRequest`; `param` is like `messages[0].tool_calls[1].function.arguments`."""
    num_chars: Counter[str] = Counter()
    for name, value in document.items():
        num_chars[name] += len(name)
        for path, text in _strings(value, name):
            num_chars[name] += len(text)
            if name not in _UNPROMPTED:
                _refuse_tokens(text, path)
    if num_chars.total() > config.max_text_chars:
        raise TooLarge(
            f"The request has {num_chars.total()} characters of text; gateway.max_text_chars is "
            f"{config.max_text_chars}.",
            param=num_chars.most_common(1)[0][0],
        )
    for index, message in enumerate(document["messages"]):
        _refuse_tokens(_joined(message.get("content")), f"messages[{index}].content")


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string under `value`, with its path; an object's key has the path of the object."""
    pending = [(path, value)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, dict):
            yield from ((path, key) for key in value)
            pending += [(f"{path}.{key[:80]}", child) for key, child in value.items()]
        elif isinstance(value, list):
            pending += [(f"{path}[{index}]", child) for index, child in enumerate(value)]


def _joined(content: Any) -> str:
    # A template writes the parts one after the other: a token may lie in two of them.
    parts = content if isinstance(content, list) else ()
    return "".join(part.get("text", "") for part in parts)


def _refuse_tokens(text: str, path: str) -> None:
    if "\\u" in text:
        text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
    found = _TOKEN.search(text)
    if found is not None:
        raise BadRequest(f"{path}: has the control token {found[0]}; write it another way.", param=path)
