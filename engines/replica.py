"""Engine replicas as the control plane sees them, each call with a deadline.

`Replica` is the seam. `RayReplica` is one that serves: a named, detached actor, made where there is none.
`AttachedReplica` is a guest's handle onto such a one, `OwnReplica` an engine of a job's own. Errors of the actor arrive
as what they are, a lost actor as `EngineDown`, a missed deadline as `DeadlineExceeded`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from engines.actor import ReplicaStatus
from engines.actor_name import NAMESPACE, ActorName, prefix_of, serving_actors
from engines.adapter import Parcel
from engines.adapter.copies import copies_root
from engines.attached import AttachedReplica, find_replicas
from engines.config import EngineConfig
from engines.ending import end_actor
from engines.errors import BadRequest
from engines.made import MadeReplica
from engines.own import OwnReplica
from engines.types import Endpoint, LoadedAdapter, ProbePrompt, ProbeScore, UserLoad, VersionName

__all__ = [
    "NAMESPACE",
    "ActorName",
    "AttachedReplica",
    "OwnReplica",
    "RayReplica",
    "Replica",
    "find_replicas",
    "prefix_of",
]


class Replica(Protocol):
    """One engine replica. `name` is `engine/N`. The calls are those of `EngineActor`, each with a deadline."""

    @property
    def name(self) -> str: ...

    @property
    def engine(self) -> str: ...

    async def start(self) -> Endpoint: ...

    async def restart(self) -> Endpoint: ...

    async def copy(self, parcel: Parcel) -> None: ...

    async def has_copy(self, version: VersionName, hashes: Mapping[str, str]) -> bool: ...

    async def load(self, owner: str, version: VersionName, ttl_s: float) -> LoadedAdapter: ...

    async def release(self, owner: str, version: VersionName) -> None: ...

    async def keep_only(self, owner: str, versions: Iterable[VersionName]) -> None: ...

    async def renew(self, owner: str, versions: Sequence[VersionName], ttl_s: float) -> None: ...

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]: ...

    async def note_users(self, load: UserLoad) -> None: ...

    async def status(self) -> ReplicaStatus: ...

    async def revive(self) -> None:
        """A new actor, if the old one is gone."""


class RayReplica(MadeReplica):
    """A serving replica: its actor outlives the gateway, and is found again by its name."""

    def __init__(
        self,
        installation: str,
        engine: str,
        number: int,
        config: EngineConfig,
        log_root: Path,
        actor: ActorName | None = None,
    ) -> None:
        """`actor` is one that was made for another engine, whose place this one has taken.

        Raises `BadRequest` if an actor lives that was made with another configuration.
        """
        name = actor or ActorName.of(installation, f"{engine}/{number}", config)
        log_dir = log_root / f"{engine}-{number}"
        super().__init__(f"{engine}/{number}", config, str(name), log_dir, copies_root(str(name)))
        self._refuse_another_configuration(name)

    async def end(self) -> None:
        """Ends the engine, its actor and what it reserved, for ever."""
        # One that is just being made would be there after the end.
        await asyncio.to_thread(self._making.shutdown, wait=True, cancel_futures=True)
        await asyncio.to_thread(end_actor, self._actor_name)

    def _refuse_another_configuration(self, name: ActorName) -> None:
        ours = (name.installation, name.replica)
        if any(other != name for other in serving_actors() if (other.installation, other.replica) == ours):
            raise BadRequest(
                f"engine '{self.engine}' runs with another configuration than this one: end it with "
                "`tandem stop`, then start again",
                param=f"engines.{self.engine}",
            )
