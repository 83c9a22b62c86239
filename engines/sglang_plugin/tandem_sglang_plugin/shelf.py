"""The adapters that the engine holds for Tandem: pinned, named, and really removed."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from .adapter_files import read_adapter
from .asgi import Scope
from .inner import Inner
from .inside import Inside
from .refusal import Refusal, engine_down
from .requests import Requests
from .settings import Settings

LOAD_TIMEOUT_S = 40.0
UNLOAD_TIMEOUT_S = 40.0
_log = logging.getLogger("tandem_sglang_plugin")


@dataclass(frozen=True)
class Held:
    """One adapter as the engine holds it."""

    version: str
    slot_id: int
    path: str
    sha256: str
    modules: tuple[str, ...]


class AdapterShelf:
    """Adds, removes and lists; one change at a time.

    SGLang answers an unknown name from the base, and loads an unloaded adapter again for whoever names it: so a
    version is on the shelf from after its load until before its unload, and no other name reaches SGLang. `failure` is
    why this process must be restarted; empty while it is well.
    """

    def __init__(self, inner: Inner, inside: Inside, requests: Requests, settings: Settings) -> None:
        self._inner = inner
        self._inside = inside
        self._requests = requests
        self._settings = settings
        self._held: dict[str, Held] = {}
        self._lock = asyncio.Lock()
        self.failure = ""

    def has(self, version: str) -> bool:
        return version == self._settings.base or version in self._held

    def names(self) -> tuple[str, ...]:
        return (self._settings.base, *sorted(self._held))

    async def add(self, outer: Scope, version: str, slot_id: int, path: str) -> Held:
        """Loads, pins, and only then names. Raises `Refusal`."""
        async with self._lock:
            self._check_well()
            if (known := self._held.get(version)) is not None:
                return _same(known, slot_id, path)
            self._check_room(version, slot_id)
            files = await asyncio.to_thread(read_adapter, version, path, self._settings, self._inside.num_layers)
            await self._load(outer, version, path)
            held = Held(version, slot_id, path, files.sha256, files.modules)
            self._held[version] = held
            return held

    async def remove(self, outer: Scope, version: str) -> None:
        """Forgets the name, ends what still runs under it, and unloads. An unknown version is fine."""
        async with self._lock:
            self._check_well()
            if self._held.pop(version, None) is None:
                return
            try:
                async with asyncio.timeout(UNLOAD_TIMEOUT_S):
                    await self._requests.end(outer, self._requests.of(version))
                    await self._inside.settle(version)
                    body = {"lora_name": version}
                    answer = await self._inner.call(outer, "POST", "/unload_lora_adapter", body, UNLOAD_TIMEOUT_S)
            except TimeoutError as error:
                raise self._fail(f"{version} was not unloaded within {UNLOAD_TIMEOUT_S:.0f} s") from error
            if answer.status != 200:
                raise self._fail(f"{version} could not be unloaded: {answer.reason()}")

    async def held(self, outer: Scope) -> list[Held]:
        """What SGLang itself lists; what it holds without a name of ours shows as it calls it. Raises `Refusal`."""
        async with self._lock:
            self._check_well()
            models = (await self._inner.read(outer, "/v1/models")).get("data", [])
            names = [str(model["id"]) for model in models if model.get("parent")]
            found = [self._held.get(name, Held(name, 0, "", "", ())) for name in names]
            return sorted(found, key=lambda held: held.slot_id)

    async def _load(self, outer: Scope, version: str, path: str) -> None:
        body = {"lora_name": version, "lora_path": path, "pinned": True}
        try:
            answer = await self._inner.call(outer, "POST", "/load_lora_adapter", body, LOAD_TIMEOUT_S)
        except TimeoutError as error:
            raise self._fail(f"{version} was not loaded within {LOAD_TIMEOUT_S:.0f} s") from error
        if answer.status != 200:
            message = f"the engine will not load {version}; its log says why"
            raise Refusal(400, "adapter_refused", message, answer.reason())

    def _check_well(self) -> None:
        if self.failure:
            raise engine_down(f"the engine must be restarted: {self.failure}")

    def _check_room(self, version: str, slot_id: int) -> None:
        if slot_id in {held.slot_id for held in self._held.values()}:
            raise Refusal(409, "conflict", f"slot id {slot_id} is taken; {version} needs an id of its own")
        room = self._settings.max_adapters
        if len(self._held) >= room:
            names = ", ".join(sorted(self._held))
            raise Refusal(503, "no_adapter_slot", f"all {room} slots are taken by {names}; drop one first")

    def _fail(self, reason: str) -> Refusal:
        """From now on /health says no, so that whoever watches this process restarts it."""
        self.failure = reason
        _log.error("%s; this process must be restarted", reason)
        return engine_down(f"the engine must be restarted: {reason}")


def _same(known: Held, slot_id: int, path: str) -> Held:
    if (known.slot_id, known.path) != (slot_id, path):
        raise Refusal(409, "conflict", f"{known.version} is loaded from {known.path}; a version is never loaded twice")
    return known
