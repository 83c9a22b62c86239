"""One Ray actor = one engine and the ledger of its adapter slots.

The actor is light: it imports no model library, and starts, watches and ends the engine's server process. Tokens never
pass through it. It is detached, so it outlives the gateway; the engine dies with it (see `lifeline`). Loads and drops
run one at a time; what the engine holds and what the ledger says change together or not at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.backends import build_engine
from engines.config import EngineConfig
from engines.errors import NotFound
from engines.ledger import AdapterLedger, AdapterSlot, SlotLease
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
        self._changing = asyncio.Lock()

    async def start(self) -> Endpoint:
        """Starts the engine, or starts it anew if it failed; an engine that is ready is left alone."""
        async with self._changing:
            if (await self._engine.health()).is_ready:
                return self._engine.endpoint
            await self._engine.stop()
            self._forget_all()
            self._engine = build_engine(self._engine_name, self._config, self._log_dir)
            return await self._engine.start()

    async def stop(self) -> None:
        async with self._changing:
            await self._engine.stop()
            self._forget_all()

    async def load(self, owner: str, version: VersionName, path: Path, ttl_s: float) -> LoadedAdapter:
        """Leases a slot, loads and pins. Raises `NoSlot` before the engine is asked, `AdapterRefused` if it won't."""
        async with self._changing:
            plan = self._ledger.lease(owner, version, ttl_s, time.monotonic())
            if not plan.must_load:
                return self._loaded[version]
            adapter = AdapterRef(version, plan.lease.slot_id, path)
            try:
                for slot in plan.evict:
                    await self._evict(slot)
                self._loaded[version] = await self._engine.load_adapter(adapter)
            except BaseException:
                self._ledger.undo(plan)
                raise
            self._held[version] = adapter
            self._ledger.commit(plan)
            return self._loaded[version]

    async def release(self, owner: str, version: VersionName) -> None:
        """Ends the owner's lease and unloads the adapter, unless somebody else leases it too."""
        async with self._changing:
            self._ledger.release(owner, version)
            if self._ledger.holders(version, time.monotonic()):
                return
            slot = self._ledger.begin_eviction(version, time.monotonic())
            if slot is not None:
                await self._evict(slot)

    async def renew(self, owner: str, versions: Sequence[VersionName], ttl_s: float) -> None:
        """Raises `NotFound` for a version whose slot was taken meanwhile: load it again."""
        for version in versions:
            self._ledger.renew(owner, version, ttl_s, time.monotonic())

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

    async def _evict(self, slot: AdapterSlot) -> None:
        try:
            await self._engine.drop_adapter(self._held[slot.version])
        except BaseException:
            self._ledger.cancel_eviction(slot)
            raise
        del self._held[slot.version], self._loaded[slot.version]
        self._ledger.confirm_evicted(slot)

    def _forget_all(self) -> None:
        """The engine is gone, and with it what it held. A new ledger goes on counting ids: none is used twice."""
        self._ledger = self._ledger.successor()
        self._held.clear()
        self._loaded.clear()
