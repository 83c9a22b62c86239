"""What remote servers say of themselves now: each is probed as at an engine's start, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from engines.capabilities import Capabilities
from engines.config import EngineConfig
from engines.errors import TandemError
from engines.remote import RemoteEngine
from engines.remote_key import api_key_of
from gateway.config import TandemConfig

_PROBE_TIMEOUT_S = 60.0


async def ask_remotes(config: TandemConfig) -> Mapping[str, Capabilities | TandemError]:
    """By the engine's name: what its server can't do, or why that can't be known."""
    engines = {name: engine for name, engine in config.engines.items() if engine.kind == "remote"}
    answers = await asyncio.gather(*(_ask(name, engine) for name, engine in engines.items()))
    return dict(zip(engines, answers, strict=True))


async def _ask(name: str, config: EngineConfig) -> Capabilities | TandemError:
    limit_s = min(config.start_timeout_s, _PROBE_TIMEOUT_S)
    try:
        engine = RemoteEngine(name, config.model_copy(update={"start_timeout_s": limit_s}), api_key_of(name, config))
        endpoint = await engine.start()
    except TandemError as error:
        return error
    await engine.stop()
    return endpoint.capabilities
