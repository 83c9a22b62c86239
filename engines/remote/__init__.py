"""A back end without a process: any OpenAI-compatible server by its URL, LMDeploy's among them.

It is the operator's server: Tandem neither starts nor ends it. What it can't do is probed at each start. One that went
away is `failed` until it answers again, and is probed anew then: it may be another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from engines.config import EngineConfig
from engines.errors import AdapterRefused, DeadlineExceeded, EngineDown, Refused, TandemError
from engines.remote.client import RemoteClient, ServerBusy
from engines.remote.probing import find_capabilities
from engines.remote_settings import root_of, why_no_adapters
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

HEALTH_TIMEOUT_S = 5.0
_NOT_OURS = "engine {name} is a remote server: its weights are its operator's to change; serve the new model there"

_log = logging.getLogger(__name__)


class RemoteEngine:
    """Implements `engines.protocol.Engine`. One object is one run: a stopped engine is not started again."""

    def __init__(self, name: str, config: EngineConfig, api_key: str = "") -> None:
        """`api_key` goes to the server and nowhere else; empty: it asks for none."""
        self.name = name
        self.config = config
        self._api_key = api_key
        self._health = EngineHealth(EngineState.NEW)
        self._endpoint: Endpoint | None = None
        self._client: RemoteClient | None = None

    @property
    def endpoint(self) -> Endpoint:
        if self._endpoint is None:
            because = f": {self._health.detail}" if self._health.detail else ""
            raise EngineDown(f"engine {self.name} is {self._health.state}, not ready{because}")
        return self._endpoint

    async def start(self) -> Endpoint:
        self._health = EngineHealth(EngineState.STARTING)
        self._client = RemoteClient(f"engine {self.name}", self.config.url, self._api_key)
        try:
            endpoint = await self._examine(self._client)
        except BaseException as error:  # whatever ended the start: no connection may stay behind
            self._health = EngineHealth(EngineState.FAILED, str(error) or type(error).__name__)
            await self._client.close()
            raise
        self._endpoint, self._health = endpoint, EngineHealth(EngineState.READY)
        _log.info("engine %s answers at %s: %s", self.name, endpoint.url, endpoint.capabilities.words())
        return endpoint

    async def stop(self) -> None:
        """Lets go of the server, which runs on."""
        self._endpoint, self._health = None, EngineHealth(EngineState.STOPPED)
        if self._client is not None:
            await self._client.close()

    async def load_adapter(self, adapter: AdapterRef) -> LoadedAdapter:
        raise AdapterRefused(why_no_adapters(self.name))

    async def drop_adapter(self, adapter: AdapterRef) -> None:
        """Nothing: it holds none."""

    async def list_adapters(self) -> tuple[LoadedAdapter, ...]:
        return ()

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        raise Refused(f"engine {self.name} is a remote server and scores no given answers; no version is probed there")

    async def pause(self) -> None:
        raise Refused(_NOT_OURS.format(name=self.name))

    async def swap_weights(self, model: Path, base: VersionName) -> None:
        raise Refused(_NOT_OURS.format(name=self.name))

    async def resume(self) -> None:
        """Nothing: it is never paused."""

    async def health(self) -> EngineHealth:
        if self._client is None or self._endpoint is None:
            return self._health
        try:
            await self._client.check_model(self.config.model, HEALTH_TIMEOUT_S)
        except (DeadlineExceeded, ServerBusy) as error:
            return EngineHealth(EngineState.UNRESPONSIVE, error.message)
        except TandemError as error:
            return EngineHealth(EngineState.FAILED, error.message)
        return EngineHealth(EngineState.READY)

    async def stats(self) -> EngineStats | None:
        """None: a server's own metrics are not ours to know."""
        return None

    async def _examine(self, client: RemoteClient) -> Endpoint:
        try:
            async with asyncio.timeout(self.config.start_timeout_s):
                await client.check_model(self.config.model, HEALTH_TIMEOUT_S)
                capabilities = await find_capabilities(client, self.config.model)
        except TimeoutError as error:
            raise EngineDown(
                f"engine {self.name}: the probe of {self.config.url} took over {self.config.start_timeout_s:g} s; "
                "raise start_timeout_s, or see what keeps the server"
            ) from error
        except TandemError as error:
            raise EngineDown(error.message, detail=error.detail) from error
        return Endpoint(root_of(self.config.url), self._api_key, self.config.model, capabilities)
