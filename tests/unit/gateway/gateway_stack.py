"""The real application over a real store and a real fake-engine process, for the tests of the gateway."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import uvicorn
from PIL import Image

from engines.config import EngineConfig
from engines.errors import Conflict
from engines.fake import FakeEngine
from engines.types import Endpoint, VersionName
from gateway.app import App, Services, build_app
from gateway.board import ReplicaBoard
from gateway.config import TandemConfig
from gateway.connection import bounded_connection
from gateway.generation import GenerationRow, ReleaseProgress
from gateway.media import ImageStore
from gateway.metrics import Metrics
from gateway.record import Recorder
from gateway.route import ReplicaRoute, RouteTable
from gateway.store import StateChange, Store, open_store
from gateway.types import PublishReport, VersionRow, VersionState

CHAT = "/v1/chat/completions"


class RowPublisher:
    """Publishes in the rows and in the route table only: no engine takes part."""

    def __init__(self, store: Store, routes: RouteTable) -> None:
        self._store = store
        self._routes = routes

    async def register(self, alias: str, path: Path) -> VersionRow:
        name = VersionName(alias, self._store.versions.next_number(alias))
        row = version_row(name, path)
        self._store.versions.add(row)
        return row

    async def promote(self, alias: str, version: VersionName) -> PublishReport:
        self._store.versions.get(version)
        row = self._store.aliases.get(alias)
        changes = [
            StateChange(version, state) for state in (VersionState.STAGED, VersionState.PROBED, VersionState.LIVE)
        ]
        return self._flip(alias, version, row.live, changes)

    async def rollback(self, alias: str) -> PublishReport:
        row = self._store.aliases.get(alias)
        assert row.previous is not None
        return self._flip(alias, row.previous, None, [StateChange(row.live, VersionState.ROLLED_BACK)])

    def _flip(
        self, alias: str, to: VersionName, previous: VersionName | None, changes: list[StateChange]
    ) -> PublishReport:
        generation = self._store.aliases.get(alias).generation
        row = self._store.aliases.flip(alias, to, previous, generation, changes)
        for name in self._routes.snapshot.replicas:
            self._routes.add_version(name, to)
        self._routes.set_alias(row)
        return PublishReport(alias, row.live, row.previous, row.generation, 0.0, (), "rows")


class NoReleaser:
    """Releases nothing."""

    async def release(self, engine: str, path: Path, *, in_place: bool = False) -> GenerationRow:
        raise Conflict("there are no replicas here")

    def progress_of(self, row: GenerationRow) -> ReleaseProgress:
        return ReleaseProgress(row.steps)


@dataclass(frozen=True)
class Stack:
    services: Services
    app: App
    http: httpx.AsyncClient

    async def chat(self, content: Any = "hello", **fields: Any) -> httpx.Response:
        body = {"model": "vqa", "messages": [{"role": "user", "content": content}], **fields}
        return await self.http.post(CHAT, json=body)


@asynccontextmanager
async def open_engine(folder: Path, **args: Any) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine("small", EngineConfig(model=str(folder), kind="fake", args=args, start_timeout_s=30), folder)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@asynccontextmanager
async def open_stack(folder: Path, *endpoints: Endpoint, **gateway: Any) -> AsyncIterator[Stack]:
    """A gateway with the alias `vqa` on a replica of `small` at each endpoint; `gateway` overrides its section."""
    services = open_services(make_config(folder, **gateway), *endpoints)
    app = build_app(services)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield Stack(services, app, http)
    await services.recorder.close()
    await app.aclose()
    services.store.close()


def make_config(folder: Path, **gateway: Any) -> TandemConfig:
    return TandemConfig.model_validate(
        {
            "data": folder / "data",
            "engines": {"small": {"model": str(folder), "kind": "fake"}},
            "models": {"vqa": {"engine": "small"}},
            "gateway": gateway,
        }
    )


def open_services(config: TandemConfig, *endpoints: Endpoint) -> Services:
    store, metrics, routes = open_store(config.store.url), Metrics(), RouteTable()
    store.generations.ensure("small", config.engines["small"].model_path())
    routes.set_alias(store.aliases.ensure("vqa", "small"))
    for number, endpoint in enumerate(endpoints):
        routes.set_replica(ReplicaRoute(f"small/{number}", "small", endpoint, ready=True))
    images = ImageStore(config.store.media)
    recorder = Recorder(store, images, metrics, config.gateway)
    return Services(
        config, store, images, routes, recorder, RowPublisher(store, routes), NoReleaser(), metrics, ReplicaBoard()
    )


@asynccontextmanager
async def listen(app: Any, write_timeout_s: float = 60.0) -> AsyncIterator[str]:
    """`app` on a free loopback port; its URL."""
    http = bounded_connection(write_timeout_s)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=http, log_config=None, timeout_graceful_shutdown=1))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    running = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await running


@asynccontextmanager
async def faults(endpoint: Endpoint, **settings: Any) -> AsyncIterator[None]:
    """Sets faults of the fake engine, and ends them."""
    await call_engine(endpoint, "POST", "/tandem/faults", settings)
    try:
        yield
    finally:
        await call_engine(endpoint, "POST", "/tandem/faults", {})


async def call_engine(endpoint: Endpoint, method: str, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {endpoint.token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, endpoint.url + path, json=body) as response,
    ):
        response.raise_for_status()
        return await response.json()


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    """Polls an async or plain condition."""
    async with asyncio.timeout(timeout_s):
        while True:
            value = condition()
            if await value if asyncio.iscoroutine(value) else value:
                return
            await asyncio.sleep(0.01)


def version_row(
    name: VersionName, path: Path = Path("/nowhere"), state: VersionState = VersionState.VERIFIED
) -> VersionRow:
    return VersionRow(name, "small", state, path, "sha256:base", "sha256:weights", 8, "hashes", datetime.now(UTC))


def picture(kind: str = "PNG", size: tuple[int, int] = (16, 16), mode: str = "RGB", **save: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **save)
    return buffer.getvalue()


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def image_part(content: bytes | None = None, kind: str = "png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(picture() if content is None else content, kind)}}
