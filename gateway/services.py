"""What the application stands on: opened by the composition root, handed to every handler."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from engines.types import VersionName
from gateway.board import ReplicaBoard
from gateway.config import TandemConfig
from gateway.drain import Drain
from gateway.generation import GenerationRow, ReleaseProgress
from gateway.media import ImageStore
from gateway.metrics import Metrics
from gateway.record import Recorder
from gateway.route import RouteTable
from gateway.store import Store
from gateway.types import PublishReport, VersionRow
from gateway.users import UserLoads


class Publisher(Protocol):
    """Moves versions and aliases. Every call raises `TandemError` and then has changed nothing."""

    async def register(self, alias: str, path: Path) -> VersionRow: ...

    async def promote(self, alias: str, version: VersionName) -> PublishReport: ...

    async def rollback(self, alias: str) -> PublishReport: ...


class Releaser(Protocol):
    """Moves engines from one base model to the next. Raises `TandemError` and then has changed nothing."""

    async def release(self, engine: str, path: Path, *, in_place: bool = False) -> GenerationRow: ...

    def progress_of(self, row: GenerationRow) -> ReleaseProgress: ...


@dataclass(frozen=True)
class Services:
    config: TandemConfig
    store: Store
    images: ImageStore
    routes: RouteTable
    recorder: Recorder
    publisher: Publisher
    releaser: Releaser
    metrics: Metrics
    board: ReplicaBoard
    users: UserLoads = field(default_factory=UserLoads)
    drain: Drain = field(default_factory=Drain)
