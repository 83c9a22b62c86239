"""A replica whose actor we make: the first call finds it, or makes it where there is room."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engines import control
from engines.actor import EngineActor
from engines.actor_name import NAMESPACE
from engines.config import EngineConfig
from engines.errors import DeadlineExceeded
from engines.placement import place
from engines.remote_call import ActorReplica
from engines.remote_key import api_key_of
from engines.types import Endpoint

START_MARGIN_S = 30.0
SWAP_TIMEOUT_S = 2 * control.SWAP_TIMEOUT_S
"""There, and, if that fails, back."""
REVIVE_TIMEOUT_S = 60.0


class MadeReplica(ActorReplica):
    """`is_detached`: the actor outlives us; otherwise it ends with our driver process, and its engine with it."""

    is_detached = True

    def __init__(self, name: str, config: EngineConfig, actor_name: str, log_dir: Path, copies_dir: Path) -> None:
        """`name` is `engine/N`. Raises `ConfigError` if a remote server's key is not in our environment."""
        super().__init__(name, name.rpartition("/")[0])
        self._config = config
        self._actor_name = actor_name
        self._log_dir = log_dir
        self._copies_dir = copies_dir
        self._api_key = api_key_of(self.engine, config)
        # A thread of its own: waiting for room on the cluster must not use up those that others need.
        self._making = ThreadPoolExecutor(1, thread_name_prefix=f"make {self.name}")

    async def start(self) -> Endpoint:
        """Returns at once where the engine is ready: a gateway that comes back uses it again."""
        endpoint: Endpoint = await self._call(
            "host", self.engine, self._config, timeout_s=self._config.start_timeout_s + START_MARGIN_S
        )
        return endpoint

    async def restart(self) -> Endpoint:
        endpoint: Endpoint = await self._call("restart", timeout_s=self._config.start_timeout_s + START_MARGIN_S)
        return endpoint

    async def swap(self) -> Endpoint:
        """Lets the actor, which serves another model, serve this one in its place; see `EngineActor.swap`."""
        endpoint: Endpoint = await self._call(
            "swap", self.engine, self._config, timeout_s=SWAP_TIMEOUT_S + self._config.start_timeout_s
        )
        return endpoint

    async def revive(self) -> None:
        try:
            making = asyncio.get_running_loop().run_in_executor(self._making, self._get_or_create)
            self._actor = await asyncio.wait_for(making, REVIVE_TIMEOUT_S)
        except TimeoutError:
            raise DeadlineExceeded(f"Ray made no actor for {self.name} within {REVIVE_TIMEOUT_S:.0f} s") from None

    def _get_or_create(self) -> Any:
        import ray

        actor_class = ray.remote(EngineActor)
        return actor_class.options(
            name=self._actor_name,
            namespace=NAMESPACE,
            lifetime="detached" if self.is_detached else "non_detached",
            get_if_exists=True,
            max_concurrency=64,
            **place(self._actor_name, self._config, is_detached=self.is_detached).options(),
        ).remote(self.engine, self._config, self._log_dir, self._copies_dir, self._api_key)
