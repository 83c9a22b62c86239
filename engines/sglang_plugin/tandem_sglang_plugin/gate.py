"""The only door into the engine: a token on everything, a short list of routes, everything else is not there."""

from __future__ import annotations

import hmac

from .asgi import App, HungUp, Receive, Scope, Send, header, read_body, send_json
from .chat import PATH, Chat
from .control import ADAPTERS, Control
from .inner import Inner
from .inside import Inside
from .refusal import Refusal
from .requests import Requests
from .scoring import Scorer
from .settings import Settings
from .shelf import AdapterShelf

HEALTH, MODELS = "/health", "/v1/models"
ROUTES = frozenset(
    {
        ("POST", PATH),
        ("GET", MODELS),
        ("GET", HEALTH),
        ("GET", "/metrics"),
        ("GET", ADAPTERS),
        ("POST", ADAPTERS),
        ("POST", "/tandem/probe"),
        ("GET", "/tandem/stats"),
    }
)


class Gate:
    """Pure-ASGI middleware around SGLang's application: 401 without the token, 404 off the list.

    Requests that it answers itself reach the application as calls of its own; only /health and /metrics pass through.
    """

    def __init__(self, app: App, settings: Settings, inside: Inside) -> None:
        inner = Inner(app)
        self._app = app
        self._expected = f"Bearer {settings.token}".encode()
        self._requests = Requests(inner)
        self._shelf = AdapterShelf(inner, inside, self._requests, settings)
        self._chat = Chat(inside, self._requests, self._shelf, settings)
        scorer = Scorer(inside, self._requests, self._shelf, settings)
        self._control = Control(inner, self._requests, self._shelf, scorer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                self._check(scope)
                await self._serve(scope, receive, send)
            except Refusal as refusal:
                await send_json(send, refusal.status, refusal.body())

    def _check(self, scope: Scope) -> None:
        if not hmac.compare_digest(header(scope, b"authorization"), self._expected):
            raise Refusal(401, "unauthorized", "the engine's token is missing or wrong")
        method, path = scope["method"], scope["path"]
        if (method, path) not in ROUTES and not (method == "DELETE" and path.startswith(f"{ADAPTERS}/")):
            raise Refusal(404, "not_found", f"{method} {path} is not served here")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == PATH:
            await self._chat.answer(scope, receive, send)
        elif path.startswith("/tandem/"):
            try:
                raw = await read_body(receive)
            except HungUp:
                return
            await send_json(send, 200, await self._control.answer(scope, raw))
        elif path == MODELS:
            data = [{"id": name, "object": "model", "owned_by": "tandem"} for name in self._shelf.names()]
            await send_json(send, 200, {"object": "list", "data": data})
        elif path == HEALTH and self._shelf.failure:
            raise Refusal(503, "engine_down", self._shelf.failure)
        else:
            await self._app(scope, receive, send)
