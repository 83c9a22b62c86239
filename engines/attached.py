"""Handles onto replicas that serve, for a job that is a guest on them: it makes, starts and ends nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from engines.actor_name import NAMESPACE, serving_actors
from engines.adapter import Parcel
from engines.errors import BadRequest, DeadlineExceeded, EngineDown, NotFound, Unavailable
from engines.remote_call import CALL_TIMEOUT_S, ActorReplica
from engines.types import Endpoint


def find_replicas(engine: str, installation: str = "") -> tuple[AttachedReplica, ...]:
    """The living serving replicas of `engine`, in order; Ray must be initialised. Blocks.

    Raises `NotFound` naming what there is if there are none, `BadRequest` if several installations have them and none
    is named.
    """
    names = serving_actors()
    found = [name for name in names if name.engine == engine and installation in ("", name.installation)]
    owners = sorted({name.installation for name in found})
    if not owners:
        there = ", ".join(sorted({f"{name.engine} (installation {name.installation})" for name in names})) or "none"
        whose = f" of installation '{installation}'" if installation else ""
        raise NotFound(f"no replica of engine '{engine}'{whose} runs on this Ray; there are: {there}", param="engine")
    if len(owners) > 1:
        raise BadRequest(
            f"several installations on this Ray have an engine '{engine}': name one of {', '.join(owners)}",
            param="installation",
        )
    replicas = dict.fromkeys(name.replica for name in found)  # one that is being replaced has two actors for a moment
    return tuple(AttachedReplica(owners[0], replica) for replica in replicas)


class AttachedReplica(ActorReplica):
    """One serving replica. An actor that the gateway has made anew is found again."""

    lost = "the gateway starts another, which is found when it runs"

    def __init__(self, installation: str, replica: str) -> None:
        super().__init__(replica, replica.rpartition("/")[0])
        self.installation = installation

    async def start(self) -> Endpoint:
        """Where it answers; raises `Unavailable` if it does not: starting it is its gateway's."""
        status = await self.status()
        if status.endpoint is None:
            raise Unavailable(
                f"replica {self.name} is {status.health.state}; its gateway starts it", detail=status.health.detail
            )
        return status.endpoint

    async def restart(self) -> Endpoint:
        """Raises `BadRequest`, always."""
        raise BadRequest(f"replica {self.name} serves users: a guest restarts nothing; `tandem status` shows it")

    async def copy(self, parcel: Parcel) -> None:
        """Raises `EngineDown` once the replica serves another base, in the place of the one that the job trains for."""
        serves = (await self.status()).engine
        if serves != self.engine:
            raise EngineDown(f"replica {self.name} serves {serves} now; adapters of {self.engine} do not fit it")
        await super().copy(parcel)

    async def revive(self) -> None:
        """Finds the actor that serves now; raises `EngineDown` if there is none."""
        try:
            self._actor = await asyncio.wait_for(asyncio.to_thread(self._find), CALL_TIMEOUT_S)
        except TimeoutError:
            raise DeadlineExceeded(f"Ray did not say where {self.name} is within {CALL_TIMEOUT_S:.0f} s") from None

    async def _call(self, method: str, *arguments: object, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        try:
            return await super()._call(method, *arguments, timeout_s=timeout_s)
        except EngineDown:
            self._actor = None  # looked for by the next call
            raise

    def _find(self) -> Any:
        import ray

        for name in serving_actors():
            if (name.installation, name.replica) == (self.installation, self.name):
                try:
                    return ray.get_actor(str(name), namespace=NAMESPACE)
                except ValueError:  # Ray's way to say that it has died meanwhile
                    continue
        raise EngineDown(f"replica {self.name} has no actor now; {self.lost}")
