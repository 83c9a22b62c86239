"""Engine replicas as the control plane sees them: named, detached Ray actors, each call with a deadline.

`Replica` is the seam; `RayReplica` reaches an `EngineActor`. Errors of the actor arrive as what they are, a lost actor
as `EngineDown`, a missed deadline as `DeadlineExceeded`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from engines.actor import EngineActor, ReplicaStatus
from engines.config import EngineConfig
from engines.errors import DeadlineExceeded, EngineDown, TandemError
from engines.types import Endpoint, LoadedAdapter, ProbePrompt, ProbeScore, VersionName

NAMESPACE = "tandem"
SERVING = "serving"
LEASE_TTL_S = 120.0
_CONTROL_TIMEOUT_S = 30.0


class Replica(Protocol):
    """One engine replica. `name` is `engine/N`."""

    @property
    def name(self) -> str: ...

    @property
    def engine(self) -> str: ...

    async def start(self) -> Endpoint: ...

    async def stage(self, version: VersionName, path: Path) -> LoadedAdapter: ...

    async def unload(self, version: VersionName) -> None: ...

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]: ...

    async def renew(self, versions: Sequence[VersionName]) -> None: ...

    async def status(self) -> ReplicaStatus: ...


class RayReplica:
    """A replica behind a Ray actor."""

    def __init__(self, engine: str, number: int, config: EngineConfig, log_dir: Path) -> None:
        self.name = f"{engine}/{number}"
        self.engine = engine
        self._config = config
        self._log_dir = log_dir
        self._actor = self._get_or_create()

    async def start(self) -> Endpoint:
        """Returns at once where the engine is ready: a gateway that comes back uses it again."""
        endpoint: Endpoint = await self._call("start", timeout_s=self._config.start_timeout_s + _CONTROL_TIMEOUT_S)
        return endpoint

    async def stop(self) -> None:
        """Ends the engine, then the actor."""
        import ray

        await self._call("stop", timeout_s=_CONTROL_TIMEOUT_S)
        ray.kill(self._actor)

    async def stage(self, version: VersionName, path: Path) -> LoadedAdapter:
        loaded: LoadedAdapter = await self._call("load", SERVING, version, path, LEASE_TTL_S)
        return loaded

    async def unload(self, version: VersionName) -> None:
        await self._call("release", SERVING, version)

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[ProbeScore, ...]:
        scores: tuple[ProbeScore, ...] = await self._call("probe", version, tuple(prompts))
        return scores

    async def renew(self, versions: Sequence[VersionName]) -> None:
        await self._call("renew", SERVING, tuple(versions), LEASE_TTL_S)

    async def status(self) -> ReplicaStatus:
        status: ReplicaStatus = await self._call("status")
        return status

    def revive(self) -> None:
        """A new actor where the old one is gone."""
        self._actor = self._get_or_create()

    def _get_or_create(self) -> Any:
        import ray

        actor_class = ray.remote(EngineActor)
        return actor_class.options(
            name=f"engine:{self.name}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_concurrency=64,
        ).remote(self.engine, self._config, self._log_dir)

    async def _call(self, method: str, *arguments: object, timeout_s: float = _CONTROL_TIMEOUT_S) -> Any:
        import ray.exceptions

        try:
            return await asyncio.wait_for(getattr(self._actor, method).remote(*arguments), timeout_s)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TandemError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            raise EngineDown(f"the actor of replica {self.name} is gone: {str(error).splitlines()[0]}") from error
        except TimeoutError:
            raise DeadlineExceeded(f"replica {self.name} did not answer '{method}' within {timeout_s:.0f} s") from None
