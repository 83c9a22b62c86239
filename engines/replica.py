"""Engine replicas as the control plane sees them: named, detached Ray actors, each call with a deadline.

`Replica` is the seam; `RayReplica` reaches an `EngineActor`. Errors of the actor arrive as what they are, a lost actor
as `EngineDown`, a missed deadline as `DeadlineExceeded`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engines.actor import EngineActor, ReplicaStatus
from engines.adapter import Parcel
from engines.adapter.copies import copies_root
from engines.config import EngineConfig
from engines.errors import BadRequest, DeadlineExceeded, EngineDown, TandemError
from engines.placement import place
from engines.types import Endpoint, LoadedAdapter, ProbePrompt, ProbeScore, VersionName

NAMESPACE = "tandem"
STATUS_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 30.0
START_MARGIN_S = 30.0
REVIVE_TIMEOUT_S = 60.0


class Replica(Protocol):
    """One engine replica. `name` is `engine/N`. The calls are those of `EngineActor`, each with a deadline."""

    @property
    def name(self) -> str: ...

    @property
    def engine(self) -> str: ...

    async def start(self) -> Endpoint: ...

    async def restart(self) -> Endpoint: ...

    async def copy(self, parcel: Parcel) -> None: ...

    async def load(self, owner: str, version: VersionName, ttl_s: float) -> LoadedAdapter: ...

    async def release(self, owner: str, version: VersionName) -> None: ...

    async def keep_only(self, owner: str, versions: Iterable[VersionName]) -> None: ...

    async def renew(self, owner: str, versions: Sequence[VersionName], ttl_s: float) -> None: ...

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]: ...

    async def status(self) -> ReplicaStatus: ...

    async def revive(self) -> None:
        """A new actor, if the old one is gone."""


@dataclass(frozen=True, slots=True)
class ActorName:
    """How a replica's actor is called in Ray: whose it is, which replica, and the configuration it was made with."""

    installation: str
    replica: str
    config_hash: str

    def __str__(self) -> str:
        return f"{prefix_of(self.installation)}{self.replica}:{self.config_hash}"

    @classmethod
    def of(cls, installation: str, replica: str, config: EngineConfig) -> ActorName:
        return cls(installation, replica, hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12])


def prefix_of(installation: str) -> str:
    """What the names of all actors of one installation begin with."""
    return f"engine:{installation}:"


class RayReplica:
    """A replica behind a Ray actor."""

    def __init__(self, installation: str, engine: str, number: int, config: EngineConfig, log_root: Path) -> None:
        """Raises `BadRequest` if an actor lives that was made with another configuration.

        The first call finds the actor, or makes it where there is room.
        """
        self.name = f"{engine}/{number}"
        self.engine = engine
        self._config = config
        self._log_dir = log_root / f"{engine}-{number}"
        self._actor_name = ActorName.of(installation, self.name, config)
        # A thread of its own: waiting for room on the cluster must not use up those that others need.
        self._making = ThreadPoolExecutor(1, thread_name_prefix=f"make {self.name}")
        self._actor: Any = None
        self._refuse_another_configuration()

    async def start(self) -> Endpoint:
        """Returns at once where the engine is ready: a gateway that comes back uses it again."""
        endpoint: Endpoint = await self._call("start", timeout_s=self._config.start_timeout_s + START_MARGIN_S)
        return endpoint

    async def restart(self) -> Endpoint:
        endpoint: Endpoint = await self._call("restart", timeout_s=self._config.start_timeout_s + START_MARGIN_S)
        return endpoint

    async def copy(self, parcel: Parcel) -> None:
        import ray

        if self._actor is None:
            await self.revive()  # connects; only then there is an object store
        # A large adapter takes longer to serialize than the event loop may be kept from its streams.
        await self._call("copy", await asyncio.to_thread(ray.put, parcel))

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

    async def status(self) -> ReplicaStatus:
        status: ReplicaStatus = await self._call("status", timeout_s=STATUS_TIMEOUT_S)
        return status

    async def revive(self) -> None:
        try:
            making = asyncio.get_running_loop().run_in_executor(self._making, self._get_or_create)
            self._actor = await asyncio.wait_for(making, REVIVE_TIMEOUT_S)
        except TimeoutError:
            raise DeadlineExceeded(f"Ray made no actor for {self.name} within {REVIVE_TIMEOUT_S:.0f} s") from None

    def _refuse_another_configuration(self) -> None:
        from ray.util import list_named_actors

        mine = f"{prefix_of(self._actor_name.installation)}{self.name}:"
        for actor in list_named_actors(all_namespaces=True):
            if actor["namespace"] == NAMESPACE and actor["name"].startswith(mine):
                if actor["name"] != str(self._actor_name):
                    raise BadRequest(
                        f"engine '{self.engine}' runs with another configuration than this one: end it with "
                        "`tandem stop`, then start again",
                        param=f"engines.{self.engine}",
                    )

    def _get_or_create(self) -> Any:
        import ray

        name = str(self._actor_name)
        actor_class = ray.remote(EngineActor)
        return actor_class.options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_concurrency=64,
            **place(name, self._config).options(),
        ).remote(self.engine, self._config, self._log_dir, copies_root(name))

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
            raise EngineDown(
                f"the actor of replica {self.name} cannot be reached; the gateway starts another"
            ) from error
        except TimeoutError:
            raise DeadlineExceeded(f"replica {self.name} did not answer '{method}' within {timeout_s:.0f} s") from None
