"""One Ray actor = one engine, the ledger of its adapter slots, and its own copies of the adapters' files.

The actor is light: it imports no model library, and starts, watches and ends the engine's server process. Tokens never
pass through it. It is detached, so it outlives the gateway; the engine dies with it (see `lifeline`). Loads and drops
run one at a time. A version is in the ledger only while the engine surely holds it: one that leaves, or whose load did
not end well, is a stray until the engine has confirmed its drop, and no load happens while there are strays. A copy
whose adapter has left the engine goes if it is a job's step, which nobody loads again; others stay as spares.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engines.adapter import Parcel
from engines.adapter.copies import AdapterCopies
from engines.backends import build_engine
from engines.config import EngineConfig
from engines.errors import AdapterRefused, Conflict, NotFound, TandemError, Unavailable
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
    UserLoad,
    VersionName,
)

_log = logging.getLogger(__name__)
_MAX_BASE_PROBES = 16
_USERS_TTL_S = 10.0


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What an actor says of its engine: health, load (None unless ready and known), adapters held, leases, copies.

    `num_slots` is how many adapters fit, `num_rollout_slots` how many of them only jobs may use; `copies_root` is where
    the replica keeps its own copies of their files. `engine` is whose base it serves. `users` is what the gateway last
    said that users see, None if it has said nothing for 10 s.
    """

    health: EngineHealth
    endpoint: Endpoint | None
    stats: EngineStats | None
    adapters: tuple[LoadedAdapter, ...]
    leases: tuple[SlotLease, ...]
    num_slots: int
    copies_root: Path
    num_rollout_slots: int = 0
    users: UserLoad | None = None
    engine: str = ""


class EngineActor:
    """Hosts one engine. Every method is a remote call with the caller's deadline; errors are `TandemError`s."""

    def __init__(
        self, engine_name: str, config: EngineConfig, log_dir: Path, copies_dir: Path, api_key: str = ""
    ) -> None:
        """`api_key` is a remote server's: our environment is that of Ray's daemon, which need not have it."""
        self._engine_name = engine_name
        self._config = config
        self._log_dir = log_dir
        self._api_key = api_key
        self._engine = build_engine(engine_name, config, log_dir, api_key)
        self._ledger = AdapterLedger(config.max_loras, config.reserved_for_rollout)
        self._copies = AdapterCopies(copies_dir)
        self._base_probes: dict[tuple[VersionName, tuple[ProbePrompt, ...]], tuple[ProbeScore, ...]] = {}
        self._held: dict[VersionName, AdapterRef] = {}
        self._loaded: dict[VersionName, LoadedAdapter] = {}
        self._strays: dict[VersionName, AdapterRef] = {}
        self._users: tuple[UserLoad, float] | None = None
        self._changing = asyncio.Lock()

    async def host(self, engine_name: str, config: EngineConfig) -> Endpoint:
        """`start`, but if the actor serves another engine (a swap that was broken off), that is ended first."""
        async with self._changing:
            if (engine_name, config) != (self._engine_name, self._config):
                self._engine_name, self._config = engine_name, config
                return await self._start_anew()
        return await self.start()

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
            return await self._start_anew()

    async def restart(self) -> Endpoint:
        """Ends the engine, whatever it does, and starts it anew: for one that has hung for too long."""
        async with self._changing:
            return await self._start_anew()

    async def swap(self, engine_name: str, config: EngineConfig) -> Endpoint:
        """Another base model in the engine's process, which then is `engine_name`; it must fit the old one's place.

        Whoever calls has seen to it that no user is being answered. Adapters are gone afterwards, and with them the
        leases of all owners. Raises what the engine said, and then serves what it served, reloaded or started anew.
        """
        async with self._changing:
            try:
                await self._put(engine_name, config)
            except TandemError:
                await self._put_back()
                raise
            self._engine_name, self._config = engine_name, config
            return self._engine.endpoint

    async def stop(self) -> None:
        async with self._changing:
            await self._engine.stop()
            self._forget_all()

    async def copy(self, parcel: Parcel) -> None:
        """Keeps the files of a version for `load`. Raises `Conflict` if it is loaded with other files already."""
        async with self._changing:
            if parcel.version in self._strays:
                await self._drop_strays()  # nothing may read what is written over
            if parcel.version not in self._held:
                # First: spares may hold the room needed.
                await self._trim_spares(sum(len(file.data) for file in parcel.files))
                await asyncio.to_thread(self._copies.put, parcel)
            elif not self._copies.has(parcel.version, parcel.hashes()):
                raise Conflict(f"{parcel.version} is loaded with other files; a version never changes", param="version")

    async def has_copy(self, version: VersionName, hashes: Mapping[str, str]) -> bool:
        """Whether `load` would find a copy made of just these files: file name -> SHA-256 (hex)."""
        return await asyncio.to_thread(self._copies.has, version, hashes)

    async def load(self, owner: str, version: VersionName, ttl_s: float) -> LoadedAdapter:
        """Leases a slot, loads and pins what `copy` brought.

        Raises `NoSlot` before the engine is asked, `NotFound` without a copy, `EngineFault` if the copy is damaged,
        `AdapterRefused` if the engine won't have it. After any failure the version may be loaded again.
        """
        async with self._changing:
            plan = self._ledger.lease(owner, version, ttl_s, time.monotonic())
            if not plan.must_load:
                return self._loaded[version]
            try:
                for slot in plan.evict:
                    self._evict(slot)
                await self._drop_strays()
                path = await asyncio.to_thread(self._copies.open, version)
                adapter = AdapterRef(version, plan.lease.slot_id, path)
                loaded = await self._load(adapter)
            except BaseException:
                self._ledger.undo(plan)
                raise
            self._held[version], self._loaded[version] = adapter, loaded
            self._ledger.commit(plan)
            return loaded

    async def release(self, owner: str, version: VersionName) -> None:
        """Ends the owner's lease, and unloads the adapter, unless somebody else leases it too; a job's step loses its
        copy."""
        async with self._changing:
            await self._release(owner, (version,))

    async def keep_only(self, owner: str, versions: Iterable[VersionName]) -> None:
        """Releases all that `owner` leases but `versions`; a job's copies that were never loaded go too."""
        async with self._changing:
            keep = frozenset(versions)
            await self._release(owner, [version for version in self._ledger.leased_by(owner) if version not in keep])
            for version in self._copies.versions():
                if version.job == owner and version not in self._held and version not in self._strays:
                    await asyncio.to_thread(self._copies.drop, version)

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
        if not version.is_base:
            return await self._engine.probe(version, prompts)
        # What one base in one process says to the same prompts never changes, so it is asked once.
        known, key = self._base_probes, (version, tuple(prompts))
        if key not in known:
            scores = await self._engine.probe(version, prompts)
            if len(known) >= _MAX_BASE_PROBES:
                known.clear()
            known[key] = scores
        return known[key]

    async def status(self) -> ReplicaStatus:
        health = await self._engine.health()
        known = ReplicaStatus(
            health=health,
            endpoint=None,
            stats=None,
            adapters=(),
            leases=(),
            num_slots=self._config.num_slots,
            copies_root=self._copies.root,
            num_rollout_slots=self._config.reserved_for_rollout,
            users=self._fresh_users(),
            engine=self._engine_name,
        )
        if not health.is_ready:
            return known
        return replace(
            known,
            endpoint=self._engine.endpoint,
            stats=await self._engine.stats(),
            adapters=await self._engine.list_adapters(),
            leases=self._ledger.leases(time.monotonic()),
        )

    async def note_users(self, load: UserLoad) -> None:
        """What users see of this replica, for who samples on it as a guest."""
        self._users = (load, time.monotonic())

    def _fresh_users(self) -> UserLoad | None:
        if self._users is None:
            return None
        load, said_s = self._users
        return load if time.monotonic() - said_s <= _USERS_TTL_S else None

    async def _start_anew(self) -> Endpoint:
        await self._engine.stop()
        self._forget_all()
        self._engine = build_engine(self._engine_name, self._config, self._log_dir, self._api_key)
        return await self._engine.start()

    async def _put(self, engine_name: str, config: EngineConfig) -> None:
        await self._engine.pause()
        await self._engine.swap_weights(config.model_path(), VersionName(engine_name, 0))
        self._forget_all()
        await self._engine.resume()

    async def _put_back(self) -> None:
        try:
            await self._put(self._engine_name, self._config)
        except TandemError as error:
            _log.warning("the weights of %s cannot be reloaded, so it is started anew: %s", self._engine_name, error)
            await self._start_anew()

    async def _release(self, owner: str, versions: Iterable[VersionName]) -> None:
        for version in versions:
            self._ledger.release(owner, version)
            if self._ledger.holders(version, time.monotonic()):
                continue
            slot = self._ledger.begin_eviction(version, time.monotonic())
            if slot is not None:
                self._evict(slot)
            elif version not in self._strays:
                self._drop_step(version)
        await self._drop_strays()
        await self._trim_spares()

    async def _load(self, adapter: AdapterRef) -> LoadedAdapter:
        self._strays[adapter.version] = adapter
        try:
            loaded = await self._read(adapter)
        except BaseException:
            await self._try_to_drop_strays()
            raise
        del self._strays[adapter.version]
        return loaded

    async def _read(self, adapter: AdapterRef) -> LoadedAdapter:
        """A copy that rotted is this replica's fault and not the adapter's, whether the engine takes it or not."""
        try:
            loaded = await self._engine.load_adapter(adapter)
        except AdapterRefused:
            await asyncio.to_thread(self._copies.check_weights, adapter.version, None)
            raise
        await asyncio.to_thread(self._copies.check_weights, adapter.version, loaded.sha256)
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
            self._drop_step(adapter.version)

    def _drop_step(self, version: VersionName) -> None:
        """The copy of a job's step, which nobody loads again; others stay as spares."""
        if version.job is not None:
            self._copies.drop(version)

    async def _trim_spares(self, needed_bytes: int = 0) -> None:
        await asyncio.to_thread(self._copies.trim, {*self._held, *self._strays}, needed_bytes)

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
        self._base_probes = {}  # an answer that is under way belongs to the old one
        self._copies.clear()
