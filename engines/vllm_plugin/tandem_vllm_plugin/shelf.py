"""The adapters that the engine holds for Tandem: pinned, named, and really removed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .refusal import Refusal, reason_of

WEIGHTS_FILE = "adapter_model.safetensors"
CHUNK_BYTES = 4 << 20
_log = logging.getLogger("tandem_vllm_plugin")


@dataclass(frozen=True)
class Held:
    """One adapter as the engine holds it."""

    version: str
    slot_id: int
    path: str
    sha256: str
    modules: tuple[str, ...]


class AdapterShelf:
    """Adds, removes and lists; one change at a time. `max_adapters` is one less than the engine's slots: the one to
    spare takes a request that outlived its adapter, which would otherwise find every slot pinned and end the engine."""

    def __init__(self, engine: Any, models: Any, max_adapters: int) -> None:
        self._engine = engine
        self._models = models
        self._max_adapters = max_adapters
        self._held: dict[str, Held] = {}
        self._lock = asyncio.Lock()

    async def add(self, version: str, slot_id: int, path: str) -> Held:
        """Loads, pins, and only then names. Raises `Refusal` and leaves nothing behind."""
        async with self._lock:
            if (known := self._held.get(version)) is not None:
                return _same(known, slot_id, path)
            self._check_room(version, slot_id)
            start_s = time.perf_counter()
            try:
                sha256, modules = await asyncio.gather(
                    asyncio.to_thread(_sha256, Path(path) / WEIGHTS_FILE), self._load(version, slot_id, path)
                )
            except BaseException:
                if not self._engine.errored:
                    await self._forget(version, slot_id)
                raise
            self._models.lora_requests[version] = _request(version, slot_id, path)
            held = Held(version, slot_id, path, sha256, modules)
            self._held[version] = held
            _log.info("%s is loaded after %.3f s", version, time.perf_counter() - start_s)
            return held

    async def remove(self, version: str) -> None:
        """Forgets the name, ends what still runs under it, and frees the slot. An unknown version is fine."""
        async with self._lock:
            held = self._held.pop(version, None)
            if held is not None:
                await self._forget(version, held.slot_id)

    async def clear(self) -> None:
        """Removes all of them, named or not: what comes after has another base."""
        async with self._lock:
            for version, held in list(self._held.items()):
                await self._forget(version, held.slot_id)
                del self._held[version]
            await self._remove_orphans()

    async def held(self) -> list[Held]:
        """What the engine itself lists; an id that it holds without a name of ours shows as `unnamed@<id>`."""
        async with self._lock:
            ids = set(await self._engine.list_loras())
            by_id = {held.slot_id: held for held in self._held.values()}
            return [by_id.get(slot_id, Held(f"unnamed@{slot_id}", slot_id, "", "", ())) for slot_id in sorted(ids)]

    def _check_room(self, version: str, slot_id: int) -> None:
        if slot_id in {held.slot_id for held in self._held.values()}:
            raise Refusal(409, "conflict", f"slot id {slot_id} is taken; {version} needs an id of its own")
        if len(self._held) >= self._max_adapters:
            names = ", ".join(sorted(self._held))
            raise Refusal(
                503, "no_adapter_slot", f"all {self._max_adapters} slots are taken by {names}; drop one first"
            )

    async def _remove_orphans(self) -> None:
        ours = {held.slot_id for held in self._held.values()}
        for orphan in set(await self._engine.list_loras()) - ours:
            await self._engine.remove_lora(orphan)

    async def _load(self, version: str, slot_id: int, path: str) -> tuple[str, ...]:
        others = [held.slot_id for held in self._held.values()]
        try:
            # Each call to the engine waits for its current step, so all is one call.
            per_worker = await self._engine.collective_rpc("tandem_load_adapter", args=(version, slot_id, path, others))
        except Exception as error:  # named boundary: whatever vLLM raises for an adapter it won't have
            if self._engine.errored:
                raise Refusal(503, "engine_down", "the engine died while loading the adapter; read its log") from error
            raise Refusal(
                400, "adapter_refused", f"the engine will not load {version}; its log says why", reason_of(error)
            ) from error
        modules = tuple(sorted({name for names, _ in per_worker for name in names}))
        _log.info("%s: the engine loaded it in %.3f s", version, max(seconds for _, seconds in per_worker))
        if not modules:
            raise Refusal(
                400, "adapter_refused", f"{version} matched no module of the model; was it made for another base?"
            )
        return modules

    async def _forget(self, version: str, slot_id: int) -> None:
        self._models.lora_requests.pop(version, None)
        states = self._engine.output_processor.request_states
        running = [request_id for request_id, state in list(states.items()) if state.lora_name == version]
        if running:
            await self._engine.abort(running, internal=True)
        if slot_id in set(await self._engine.list_loras()):
            await self._engine.remove_lora(slot_id)


def _request(version: str, slot_id: int, path: str) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=version, lora_int_id=slot_id, lora_path=path)


def _same(known: Held, slot_id: int, path: str) -> Held:
    if (known.slot_id, known.path) != (slot_id, path):
        raise Refusal(409, "conflict", f"{known.version} is loaded from {known.path}; a version is never loaded twice")
    return known


def _sha256(weights: Path) -> str:
    # In large pieces: each hands the interpreter's lock over twice, and a busy server is slow to give it back.
    digest, view = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    try:
        with weights.open("rb", buffering=0) as file:
            while num_bytes := file.readinto(view):
                digest.update(view[:num_bytes])
    except OSError as error:
        raise Refusal(
            400, "adapter_refused", f"{weights} cannot be read: {error.strerror}; check the directory"
        ) from error
    return digest.hexdigest()
