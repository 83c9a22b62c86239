"""One Ray actor = one engine and the ledger of its adapter slots.

The actor is light: it imports no model library, and starts, watches and ends the engine's server process. Tokens never
pass through it. It is detached, so it outlives the gateway; the engine dies with it (see `lifeline`). Loads and drops
run one at a time. A version is in the ledger only while the engine surely holds it: one that leaves, or whose load did
not end well, is a stray until the engine has confirmed its drop, and no load happens while there are strays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.backends import build_engine
from engines.config import EngineConfig
from engines.errors import Conflict, NotFound, TandemError, Unavailable
from engines.ledger import AdapterLedger, AdapterSlot, SlotLease
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

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What an actor says of its engine: health, load (None unless ready), adapters held, leases."""

    health: EngineHealth
    endpoint: Endpoint | None
    stats: EngineStats | None
    adapters: tuple[LoadedAdapter, ...]
    leases: tuple[SlotLease, ...]


class EngineActor:
    """Hosts one engine. Every method is a remote call with the caller's deadline; errors are `TandemError`s."""

    def __init__(self, engine_name: str, config: EngineConfig, log_dir: Path) -> None:
        self._engine_name = engine_name
        self._config = config
        self._log_dir = log_dir
        self._engine = build_engine(engine_name, config, log_dir)
        self._ledger = AdapterLedger(config.max_loras)
        self._held: dict[VersionName, AdapterRef] = {}
        self._loaded: dict[VersionName, LoadedAdapter] = {}
        self._strays: dict[VersionName, AdapterRef] = {}
        self._changing = asyncio.Lock()

    async def start(self) -> Endpoint:
        """Starts the engine, or starts it anew if it failed; an engine that is ready is left alone.

        Raises `Unavailable` for one that runs but does not answer: it may be busy, and is not ended for that.
        """
        async with self._changing:
            health = await self._engine.health()
            if health.is_ready:
                return self._engine.endpoint
            if health.state is EngineState.UNRESPONSIVE:
                raise Unavailable(
                    f"engine {self._engine_name} runs but does not answer; wait, or stop it to have it started anew"
                )
            await self._engine.stop()
            self._forget_all()
            self._engine = build_engine(self._engine_name, self._config, self._log_dir)
            return await self._engine.start()

    async def stop(self) -> None:
        async with self._changing:
            await self._engine.stop()
            self._forget_all()

    async def load(self, owner: str, version: VersionName, path: Path, ttl_s: float) -> LoadedAdapter:
        """Leases a slot, loads and pins.

        Raises `NoSlot` before the engine is asked, `AdapterRefused` if it won't, `Conflict` if the version is held from
        another path. After any failure the version may be loaded again.
        """
        async with self._changing:
            self._check_path(version, path)
            plan = self._ledger.lease(owner, version, ttl_s, time.monotonic())
            if not plan.must_load:
                return self._loaded[version]
            adapter = AdapterRef(version, plan.lease.slot_id, path)
            try:
                for slot in plan.evict:
                    self._evict(slot)
                await self._drop_strays()
                loaded = await self._load(adapter)
            except BaseException:
                self._ledger.undo(plan)
                raise
            self._held[version], self._loaded[version] = adapter, loaded
            self._ledger.commit(plan)
            return loaded

    async def release(self, owner: str, version: VersionName) -> None:
        """Ends the owner's lease and unloads the adapter, unless somebody else leases it too."""
        async with self._changing:
            self._ledger.release(owner, version)
            if self._ledger.holders(version, time.monotonic()):
                return
            slot = self._ledger.begin_eviction(version, time.monotonic())
            if slot is not None:
                self._evict(slot)
            await self._drop_strays()

    async def renew(self, owner: str, versions: Sequence[VersionName], ttl_s: float) -> None:
        """Renews all it can, then raises `NotFound` naming those whose slot was taken meanwhile: load them again."""
        missing = []
        for version in versions:
            try:
                self._ledger.renew(owner, version, ttl_s, time.monotonic())
            except NotFound:
                missing.append(str(version))
        if missing:
            raise NotFound(f"{owner} holds no lease of {', '.join(missing)}; load them again", param="version")

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        if not version.is_base and version not in self._loaded:
            raise NotFound(f"{version} is not loaded here; stage it first", param="version")
        return await self._engine.probe(version, prompts)

    async def status(self) -> ReplicaStatus:
        health = await self._engine.health()
        if not health.is_ready:
            return ReplicaStatus(health, None, None, (), ())
        return ReplicaStatus(
            health=health,
            endpoint=self._engine.endpoint,
            stats=await self._engine.stats(),
            adapters=await self._engine.list_adapters(),
            leases=self._ledger.leases(time.monotonic()),
        )

    def _check_path(self, version: VersionName, path: Path) -> None:
        held = self._held.get(version)
        if held is not None and held.path.absolute() != path.absolute():
            raise Conflict(f"{version} is loaded from {held.path}; a version is never loaded twice", param="path")

    async def _load(self, adapter: AdapterRef) -> LoadedAdapter:
        self._strays[adapter.version] = adapter
        try:
            loaded = await self._engine.load_adapter(adapter)
        except BaseException:
            await self._try_to_drop_strays()
            raise
        del self._strays[adapter.version]
        return loaded

    def _evict(self, slot: AdapterSlot) -> None:
        """From now on nobody counts on it; the engine is asked by `_drop_strays`."""
        self._strays[slot.version] = self._held.pop(slot.version)
        del self._loaded[slot.version]
        self._ledger.confirm_evicted(slot)

    async def _drop_strays(self) -> None:
        for adapter in tuple(self._strays.values()):
            await self._engine.drop_adapter(adapter)
            del self._strays[adapter.version]

    async def _try_to_drop_strays(self) -> None:
        try:
            await self._drop_strays()
        except TandemError as error:
            names = ", ".join(map(str, self._strays))
            _log.warning("%s may still be in the engine, and is dropped before the next load: %s", names, error.message)

    def _forget_all(self) -> None:
        """The engine is gone, and with it what it held. A new ledger goes on counting ids: none is used twice."""
        self._ledger = self._ledger.successor()
        self._held.clear()
        self._strays.clear()
        self._loaded.clear()
