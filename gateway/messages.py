"""The messages of a chat request: images are taken out, what is neither text nor image is refused by its path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engines.errors import BadRequest, TooLarge, UnsupportedField
from gateway.config import GatewayConfig
from gateway.media import CheckedImage, read_data_url

ROLES = ("system", "developer", "user", "assistant", "tool")
IMAGE_REFERENCE = "sha256:"


@dataclass(slots=True)
class Messages:
    """`sent` goes to the engine; `recorded` has `sha256:HASH` for every image."""

    sent: list[dict[str, Any]] = field(default_factory=list)
    recorded: list[dict[str, Any]] = field(default_factory=list)
    found: list[CheckedImage] = field(default_factory=list)

    @property
    def images(self) -> tuple[CheckedImage, ...]:
        return tuple(self.found)


def read_messages(messages: list[dict[str, Any]], config: GatewayConfig) -> Messages:
    """Raises `BadRequest`'s family, `TooLarge` or `BadMediaType`; `param` is like `messages[0].content[1].type`."""
    result = Messages()
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if message.get("role") not in ROLES:
            raise BadRequest(f"{path}.role: must be one of {', '.join(ROLES)}.", param=f"{path}.role")
        content = message.get("content")
        if not isinstance(content, list):
            _check_plain(message, content, path)
            result.sent.append(message)
            result.recorded.append(message)
            continue
        if not content:
            raise BadRequest(f"{path}.content: must not be empty.", param=f"{path}.content")
        is_answer = message["role"] == "assistant"
        pairs = [_read_part(part, f"{path}.content[{i}]", config, result, is_answer) for i, part in enumerate(content)]
        result.sent.append({**message, "content": [sent for sent, _ in pairs]})
        result.recorded.append({**message, "content": [recorded for _, recorded in pairs]})
    return result


def _check_plain(message: dict[str, Any], content: Any, path: str) -> None:
    if content is None and message["role"] == "assistant":
        return
    if not isinstance(content, str):
        raise BadRequest(f"{path}.content: must be a string or a list of parts.", param=f"{path}.content")
    if not content and message["role"] == "user":
        raise BadRequest(f"{path}.content: must not be empty.", param=f"{path}.content")


def _read_part(
    part: Any, path: str, config: GatewayConfig, result: Messages, is_answer: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    kind = part.get("type") if isinstance(part, dict) else None
    match kind:
        case "refusal" if not is_answer:
            raise UnsupportedField(f"{path}.type: only an assistant's message has a refusal.", param=f"{path}.type")
        case "text" | "refusal":
            _refuse_keys(part, {"type", kind}, path)
            if not isinstance(part.get(kind), str):
                raise BadRequest(f"{path}.{kind}: must be a string.", param=f"{path}.{kind}")
            return part, part
        case "image_url":
            return _read_image(part, path, config, result)
    raise UnsupportedField(f"{path}.type: 'text' and 'image_url' parts are taken.", param=f"{path}.type")


def _read_image(
    part: dict[str, Any], path: str, config: GatewayConfig, result: Messages
) -> tuple[dict[str, Any], dict[str, Any]]:
    # An engine caches images under a `uuid` of the client's choice: another client could be served from it.
    _refuse_keys(part, {"type", "image_url"}, path)
    source = part.get("image_url")
    source = {"url": source} if isinstance(source, str) else source
    if not isinstance(source, dict) or not isinstance(source.get("url"), str):
        raise BadRequest(f'{path}.image_url: must be {{"url": ...}} or a string.', param=f"{path}.image_url")
    _refuse_keys(source, {"url", "detail"}, f"{path}.image_url")
    if len(result.found) >= config.max_images:
        raise TooLarge(f"{path}: a request may have {config.max_images} images (gateway.max_images).", param=path)
    image = read_data_url(source["url"], f"{path}.image_url", config)
    result.found.append(image)
    sent = {"type": "image_url", "image_url": source}
    return sent, {"type": "image_url", "image_url": {**source, "url": f"{IMAGE_REFERENCE}{image.sha256}"}}


def _refuse_keys(part: dict[str, Any], allowed: set[str], path: str) -> None:
    for key in part:
        if key not in allowed:
            raise UnsupportedField(f"{path}.{key[:80]}: is not taken here. Leave it out.", param=f"{path}.{key[:80]}")
