"""Tells each replica's actor what its users get, once a second while it has any: jobs that are guests there ask it.

Each replica is told by a task of its own, so that one which does not answer delays nothing; it is told again, with what
is known by then, once it has answered or its deadline has passed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engines.types import UserLoad
from gateway.route import RouteTable
from gateway.users import UserLoads

_log = logging.getLogger(__name__)
_PERIOD_S = 1.0
_TIMEOUT_S = 5.0


class Told(Protocol):
    """Of a replica, what telling needs."""

    @property
    def name(self) -> str: ...

    async def note_users(self, load: UserLoad) -> None: ...


@dataclass(slots=True)
class _Tale:
    """What one replica was told, and why that failed last. `is_over`: it knows that it has no users."""

    is_over: bool = True
    trouble: str = ""


class Teller:
    def __init__(
        self, replicas: Sequence[Told], users: UserLoads, routes: RouteTable, period_s: float = _PERIOD_S
    ) -> None:
        self._replicas = list(replicas)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._users = users
        self._routes = routes
        self._period_s = period_s

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for replica in self._replicas:
                self._start(tasks, replica)
            await asyncio.Event().wait()  # others may be added

    def add(self, replica: Told) -> None:
        self._replicas.append(replica)
        if self._tasks is not None:
            self._start(self._tasks, replica)

    def remove(self, name: str) -> None:
        """It is told nothing more. Unknown is fine."""
        self._replicas = [replica for replica in self._replicas if replica.name != name]
        task = self._running.pop(name, None)
        if task is not None:
            task.cancel()

    def _start(self, tasks: asyncio.TaskGroup, replica: Told) -> None:
        self._running[replica.name] = tasks.create_task(self._tell_on(replica))

    async def _tell_on(self, replica: Told) -> None:
        tale = _Tale()
        while True:
            await asyncio.sleep(self._period_s)
            is_over = self._routes.load_of(replica.name) == 0 and self._users.is_quiet(replica.name)
            if is_over and tale.is_over:
                continue
            if await self._tell(replica, tale):
                tale.is_over = is_over

    async def _tell(self, replica: Told, tale: _Tale) -> bool:
        """Whether it heard."""
        trouble = ""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await replica.note_users(self._users.load(replica.name, self._routes.load_of(replica.name)))
        except Exception as error:  # users are answered whether or not the actor hears of them
            trouble = f"{type(error).__name__}: {error}"
        if trouble and trouble != tale.trouble:
            _log.warning("replica %s does not hear how its users fare: %s", replica.name, trouble)
        tale.trouble = trouble
        return not trouble
