"""Request bodies, read within a bound of bytes and of time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import Message, Receive, Scope

from engines.errors import BadMediaType, TooLarge
from gateway.config import GatewayConfig
from gateway.errors import SlowBody


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


async def read_body(scope: Scope, receive: Receive, config: GatewayConfig) -> bytes:
    """The whole body. Raises `TooLarge`, `SlowBody`, `BadMediaType` (not JSON, or compressed) or `ClientGone`."""
    headers = _headers(scope)
    _check_headers(headers, config.max_body_bytes)
    try:
        async with asyncio.timeout(config.body_timeout_s):
            return await _read(receive, config.max_body_bytes)
    except TimeoutError:
        raise SlowBody(f"The body did not arrive within {config.body_timeout_s:g} s; send it again.") from None


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out `body` once, then what the server has to say."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again


def _headers(scope: Scope) -> Mapping[bytes, bytes]:
    return {name.lower(): value for name, value in scope["headers"]}


def _check_headers(headers: Mapping[bytes, bytes], max_bytes: int) -> None:
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise BadMediaType("Compressed bodies are not accepted; send the JSON as it is.", param="content-encoding")
    # Without a type counts as another type, with an empty body too: a web page can send that without asking anybody.
    media_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise BadMediaType("Send the body as application/json.", param="content-type")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > max_bytes:
        raise _too_large(max_bytes)


async def _read(receive: Receive, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body is over {max_bytes} bytes (gateway.max_body_bytes); send less, or smaller images.")
