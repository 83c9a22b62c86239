"""The port of an engine: what the actor asks of every back end. No wire formats, no training, no clients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from engines.types import (
    AdapterRef,
    Endpoint,
    EngineHealth,
    EngineStats,
    LoadedAdapter,
    ProbePrompt,
    ProbeScore,
    VersionName,
)


class Engine(Protocol):
    """One model on one set of devices. Every call has a deadline of the back end's own and raises `TandemError`."""

    async def start(self) -> Endpoint:
        """Returns once the engine has answered a real request; raises `EngineDown` with the log's end otherwise."""

    async def stop(self) -> None:
        """Ends the engine and everything it spawned. Safe to call twice."""

    @property
    def endpoint(self) -> Endpoint:
        """Raises `EngineDown` unless started."""

    async def load_adapter(self, adapter: AdapterRef) -> LoadedAdapter:
        """Loads and pins. Raises `AdapterRefused` if the engine won't have it; the engine serves on."""

    async def drop_adapter(self, adapter: AdapterRef) -> None:
        """Unpins and really removes it: afterwards its name is unknown. Dropping an unknown one does nothing."""

    async def list_adapters(self) -> tuple[LoadedAdapter, ...]:
        """What the engine itself holds, not what we believe."""

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        """Scores each prompt's answer under `version` (number 0: the bare base), in order."""

    async def pause(self) -> None:
        """Computes nothing until `resume`: what is under way is aborted, what comes waits, caches are emptied."""

    async def swap_weights(self, model: Path, base: VersionName) -> None:
        """Of a paused engine. It then serves `model` as `base`, and holds no adapter. One whose load failed half way
        takes no other model and does not resume: it has to be started anew."""

    async def resume(self) -> None:
        """Raises `EngineFault` after a load that failed half way."""

    async def health(self) -> EngineHealth:
        """Cheap: asks the process and its HTTP, never the model."""

    async def stats(self) -> EngineStats | None:
        """Load now, from the engine's own metrics; None if it does not say."""
