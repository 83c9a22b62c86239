"""Calls of an `EngineActor` over Ray, each with a deadline.

Errors of the actor arrive as what they are, a lost actor as `EngineDown`, a missed deadline as `DeadlineExceeded`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engines.actor import ReplicaStatus
from engines.adapter import Parcel
from engines.errors import DeadlineExceeded, EngineDown, TandemError
from engines.types import LoadedAdapter, ProbePrompt, ProbeScore, UserLoad, VersionName

STATUS_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 30.0


class ActorReplica(ABC):
    """A replica behind a Ray actor: what all of them are asked. `name` is `engine/N`."""

    lost = "the gateway starts another"
    """What follows when the actor is gone."""

    def __init__(self, name: str, engine: str) -> None:
        self.name = name
        self.engine = engine
        self._actor: Any = None

    @abstractmethod
    async def revive(self) -> None:
        """Sets `_actor`, or raises."""

    async def copy(self, parcel: Parcel) -> None:
        import ray

        if self._actor is None:
            await self.revive()  # connects; only then there is an object store
        try:
            # A large adapter takes longer to serialize than the event loop may be kept from its streams.
            reference = await asyncio.wait_for(asyncio.to_thread(ray.put, parcel), CALL_TIMEOUT_S)
        except TimeoutError:
            raise DeadlineExceeded(
                f"Ray's object store did not take {parcel.version} within {CALL_TIMEOUT_S:.0f} s"
            ) from None
        await self._call("copy", reference)

    async def has_copy(self, version: VersionName, hashes: Mapping[str, str]) -> bool:
        answer: bool = await self._call("has_copy", version, dict(hashes))
        return answer

    async def load(self, owner: str, version: VersionName, ttl_s: float) -> LoadedAdapter:
        loaded: LoadedAdapter = await self._call("load", owner, version, ttl_s)
        return loaded

    async def release(self, owner: str, version: VersionName) -> None:
        await self._call("release", owner, version)

    async def keep_only(self, owner: str, versions: Iterable[VersionName]) -> None:
        await self._call("keep_only", owner, tuple(versions))

    async def renew(self, owner: str, versions: Sequence[VersionName], ttl_s: float) -> None:
        await self._call("renew", owner, tuple(versions), ttl_s)

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        scores: tuple[ProbeScore, ...] = await self._call("probe", version, tuple(prompts))
        return scores

    async def note_users(self, load: UserLoad) -> None:
        await self._call("note_users", load, timeout_s=STATUS_TIMEOUT_S)

    async def status(self) -> ReplicaStatus:
        status: ReplicaStatus = await self._call("status", timeout_s=STATUS_TIMEOUT_S)
        return status

    async def _call(self, method: str, *arguments: object, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        import ray.exceptions

        if self._actor is None:
            await self.revive()
        try:
            return await asyncio.wait_for(getattr(self._actor, method).remote(*arguments), timeout_s)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TandemError):
                raise error.cause from None
            raise
        except ray.exceptions.ActorUnavailableError as error:  # it may live, and its engine answer users
            raise DeadlineExceeded(f"the actor of replica {self.name} cannot be reached at this moment") from error
        except ray.exceptions.RayError as error:
            raise EngineDown(f"the actor of replica {self.name} cannot be reached; {self.lost}") from error
        except TimeoutError:
            raise DeadlineExceeded(f"replica {self.name} did not answer '{method}' within {timeout_s:.0f} s") from None
