"""The only door into the engine: a token on everything, a short list of routes, everything else is not there."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_VARIABLE = "TANDEM_ENGINE_TOKEN"  # noqa: S105  the variable's name, not a secret
ROUTES = frozenset(
    {
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/health"),
        ("GET", "/metrics"),
        ("GET", "/tandem/adapters"),
        ("POST", "/tandem/adapters"),
        ("POST", "/tandem/probe"),
        ("GET", "/tandem/stats"),
        ("POST", "/tandem/pause"),
        ("POST", "/tandem/weights"),
        ("POST", "/tandem/resume"),
    }
)
DELETE_PREFIX = "/tandem/adapters/"


class AbortCount:
    """How many clients hung up before their answer's end, in this process."""

    total = 0


class EngineGuard:
    """Pure-ASGI middleware: 401 without the token, 404 off the list; counts clients that hang up."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ[TOKEN_VARIABLE]}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif not self._has_token(scope):
            await _refuse(send, 401, "unauthorized", "the engine's token is missing or wrong")
        elif not is_listed(scope["method"], scope["path"]):
            await _refuse(send, 404, "not_found", f"{scope['method']} {scope['path']} is not served here")
        else:
            await self._pass(scope, receive, send)

    def _has_token(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._expected)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_over = False

        async def watched_receive() -> Message:
            nonlocal is_over
            message = await receive()
            if message["type"] == "http.disconnect" and not is_over:
                is_over = True
                AbortCount.total += 1
            return message

        async def watched_send(message: Message) -> None:
            nonlocal is_over
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                is_over = True
            await send(message)

        await self._app(scope, watched_receive, watched_send)


def is_listed(method: str, path: str) -> bool:
    """Whether a call is on the allow-list."""
    return (method, path) in ROUTES or (method == "DELETE" and path.startswith(DELETE_PREFIX))


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps(
        {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
