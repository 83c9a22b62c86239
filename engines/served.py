"""An `Engine` that is a supervised server with our control routes. A back end adds its command line only."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType

from engines.config import EngineConfig
from engines.control import ControlClient
from engines.errors import EngineDown, Internal, TandemError
from engines.process import ServerProcess, free_port, new_token
from engines.types import (
    AdapterRef,
    Endpoint,
    EngineHealth,
    EngineState,
    EngineStats,
    LoadedAdapter,
    ProbePrompt,
    ProbeScore,
    VersionName,
)

TOKEN_VARIABLE = "TANDEM_ENGINE_TOKEN"  # noqa: S105  the variable's name, not a secret
FIRST_ANSWER_TIMEOUT_S = 120.0
TERM_TIMEOUT_S = 15.0

TRANSITIONS = MappingProxyType(
    {
        EngineState.NEW: frozenset({EngineState.STARTING, EngineState.STOPPED}),
        EngineState.STARTING: frozenset({EngineState.READY, EngineState.FAILED, EngineState.STOPPING}),
        EngineState.READY: frozenset({EngineState.STOPPING, EngineState.FAILED}),
        EngineState.FAILED: frozenset({EngineState.STOPPING}),
        EngineState.STOPPING: frozenset({EngineState.STOPPED}),
        EngineState.STOPPED: frozenset(),
    }
)


@dataclass(frozen=True, slots=True)
class Launch:
    """A command line, and what its environment has over ours."""

    command: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


def _words_of(error: BaseException) -> str:
    return error.message if isinstance(error, TandemError) else type(error).__name__


def python_path(first: str, config: EngineConfig) -> str:
    """PYTHONPATH for the engine's process: `first`, then the configuration's, then ours."""
    paths = (first, config.env.get("PYTHONPATH", ""), os.environ.get("PYTHONPATH", ""))
    return os.pathsep.join(path for path in paths if path)


class ServedEngine(ABC):
    """Implements `engines.protocol.Engine`. One object is one run: a stopped engine is not started again."""

    log_noise: re.Pattern[str] | None = None
    """Lines of the log that say nothing, left out where a message quotes its end."""

    def __init__(self, name: str, config: EngineConfig, log_dir: Path) -> None:
        self.name = name
        self.config = config
        self.log_path = log_dir / f"{name}.log"
        self.base = VersionName(name, 0)
        self._state = EngineState.NEW
        self._reason = ""
        self._detail = ""
        self._endpoint: Endpoint | None = None
        self._process: ServerProcess | None = None
        self._client: ControlClient | None = None

    @abstractmethod
    async def launch(self, port: int) -> Launch:
        """The command that serves `self.base` on 127.0.0.1:`port`; raises `TandemError` if it cannot be."""

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def endpoint(self) -> Endpoint:
        if self._endpoint is None or self._state is not EngineState.READY:
            raise self._not_ready()
        return self._endpoint

    @property
    def process(self) -> ServerProcess:
        if self._process is None:
            raise EngineDown(f"engine {self.name} has no process: it is {self._state}")
        return self._process

    async def start(self) -> Endpoint:
        self._move(EngineState.STARTING)
        try:
            endpoint = await self._bring_up()
            self._endpoint = endpoint
            self._move(EngineState.READY)
        except BaseException as error:  # whatever ended the start: no process may stay behind
            if self._state is EngineState.STARTING:
                self._fail(_words_of(error), getattr(error, "detail", ""))
            await self._tear_down()
            raise
        return endpoint

    async def stop(self) -> None:
        """Returns once nothing of it is left, also if another `stop` began it, or was cancelled in the middle."""
        if self._state not in (EngineState.NEW, EngineState.STOPPING, EngineState.STOPPED):
            self._move(EngineState.STOPPING)
        await self._tear_down()
        if self._state is not EngineState.STOPPED:
            self._move(EngineState.STOPPED)

    async def load_adapter(self, adapter: AdapterRef) -> LoadedAdapter:
        return await self._ready_client().load_adapter(adapter)

    async def drop_adapter(self, adapter: AdapterRef) -> None:
        await self._ready_client().drop_adapter(adapter.version)

    async def list_adapters(self) -> tuple[LoadedAdapter, ...]:
        return await self._ready_client().list_adapters()

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        return await self._ready_client().probe(version, prompts)

    async def pause(self) -> None:
        await self._ready_client().pause()

    async def swap_weights(self, model: Path, base: VersionName) -> None:
        await self._ready_client().swap_weights(model, base)
        self.base = base
        self.config = self.config.model_copy(update={"model": str(model)})

    async def resume(self) -> None:
        await self._ready_client().resume()

    async def stats(self) -> EngineStats:
        return await self._ready_client().stats()

    async def health(self) -> EngineHealth:
        if self._state is not EngineState.READY:
            return EngineHealth(self._state, self._whole_reason())
        status = await self._ready_client().health_status()
        if self.state is not EngineState.READY:  # it ended while we asked
            return EngineHealth(self._state, self._whole_reason())
        if status == HTTPStatus.OK:
            return EngineHealth(EngineState.READY)
        if status is None:
            return EngineHealth(EngineState.UNRESPONSIVE, "its process runs but does not answer /health")
        return EngineHealth(EngineState.FAILED, f"its process says that its engine died (HTTP {status} to /health)")

    async def _bring_up(self) -> Endpoint:
        port, token = free_port(), new_token()
        launch = await self.launch(port)
        env = {**os.environ, **launch.env, TOKEN_VARIABLE: token}
        endpoint = Endpoint(f"http://127.0.0.1:{port}", token)
        title = f"engine {self.name}"
        process = ServerProcess(launch.command, env, self.log_path, name=title, noise=self.log_noise)
        client = ControlClient(title, endpoint, self.log_path)
        self._process, self._client = process, client
        process.on_exit(self._on_exit)
        process.start()

        async def answers() -> bool:
            # The token is for our own server: not for another that took the port before it.
            return process.listens(port) and await client.is_healthy()

        await process.wait_ready(answers, self.config.start_timeout_s)
        await self._answer_once(process, client)
        if not process.is_running:
            raise EngineDown(
                f"{title} died right after its first answer; {self.log_path} says why", detail=process.tail()
            )
        return endpoint

    async def _answer_once(self, process: ServerProcess, client: ControlClient) -> None:
        # Ready means answered: some kernels are missed only by the first real request.
        try:
            await client.first_answer(self.base, FIRST_ANSWER_TIMEOUT_S)
        except TandemError as error:
            raise EngineDown(
                f"engine {self.name} started but its first request failed ({error.message}); {self.log_path} says why",
                detail="\n".join(part for part in (error.detail, process.tail()) if part),
            ) from error

    async def _tear_down(self) -> None:
        try:
            if self._client is not None:
                await self._client.close()
        finally:
            if self._process is not None:
                await self._process.stop(TERM_TIMEOUT_S)

    def _ready_client(self) -> ControlClient:
        if self._client is None or self._state is not EngineState.READY:
            raise self._not_ready()
        return self._client

    def _on_exit(self, code: int) -> None:
        if self._state is EngineState.READY:
            self._fail(f"its process ended by itself (exit code {code}); {self.log_path} says why", self.process.tail())

    def _fail(self, reason: str, detail: str) -> None:
        self._reason, self._detail = reason, detail
        self._move(EngineState.FAILED)

    def _not_ready(self) -> EngineDown:
        because = f": {self._reason}" if self._reason else ""
        return EngineDown(f"engine {self.name} is {self._state}, not ready{because}", detail=self._detail)

    def _whole_reason(self) -> str:
        return "\n".join(part for part in (self._reason, self._detail) if part)

    def _move(self, to: EngineState) -> None:
        if to not in TRANSITIONS[self._state]:
            raise Internal(f"engine {self.name} cannot go from {self._state} to {to}; build a new one instead")
        self._state = to
