"""The application: the relay for completions, FastAPI for everything with a schema, one bound on bodies for both.

A bare ASGI dispatch on the path, without middleware classes. It reads `scope["path"]`, which no Host header can change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from engines.errors import TandemError
from gateway import errors
from gateway.api import aliases, engines, feedback, health, interactions, models, replicas, versions
from gateway.body import ClientGone, read_body, replay
from gateway.origin import check_origin
from gateway.relay import Relay
from gateway.services import Publisher, Services

__all__ = ["App", "Publisher", "Services", "build_app"]

COMPLETIONS_PATH = "/v1/chat/completions"
_BODILESS = ("GET", "HEAD", "OPTIONS", "DELETE")


class App:
    """What a server runs. `aclose` ends the connections to the engines; a server's lifespan does it."""

    def __init__(self, services: Services) -> None:
        self._config = services.config.gateway
        self._relay = Relay(services)
        self.api = _build_api(services, self._relay)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.api(scope, receive, send)
            return
        try:
            check_origin(scope)
        except TandemError as error:
            await errors.send_error(send, error)
            return
        if scope["path"] == COMPLETIONS_PATH:
            await self._relay(scope, receive, send)
        elif scope["method"] in _BODILESS:
            await self.api(scope, receive, send)
        else:
            await self._bounded(scope, receive, send)

    async def aclose(self) -> None:
        await self._relay.close()

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(scope, receive, self._config)
        except ClientGone:
            return
        except TandemError as error:
            await errors.send_error(send, error)
            return
        await self.api(scope, replay(body, receive), send)


def build_app(services: Services) -> App:
    return App(services)


def _build_api(services: Services, relay: Relay) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await relay.close()

    # Without redirects a path has one spelling.
    api = FastAPI(
        title="Tandem",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    api.state.services = services
    errors.install(api)
    for module in (models, feedback, interactions, versions, aliases, engines, replicas, health):
        api.include_router(module.router)
    return api
