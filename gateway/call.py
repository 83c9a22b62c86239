"""One call of a client: who it is, how far it got, and how long it took."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType

import uuid_utils

_UNROUTED = "none"


class Stopwatch:
    """The sum of the times spent in its blocks."""

    __slots__ = ("_start_s", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start_s = 0.0

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._start_s


@dataclass(slots=True)
class Call:
    """What is known of one call so far. `given_id`: what a remote server called its answer, if that is kept;
    `waiting`: for engines; `chunks`: what was sent."""

    id: str = field(default_factory=lambda: str(uuid_utils.uuid7()))
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    start_s: float = field(default_factory=time.perf_counter)
    model: str = _UNROUTED
    version: str = _UNROUTED
    status: int = 0
    started: bool = False
    complete: bool = False
    stream: bool = False
    ttft_s: float = 0.0
    given_id: str = ""
    waiting: Stopwatch = field(default_factory=Stopwatch)
    chunks: list[bytes] = field(default_factory=list)

    @property
    def completion_id(self) -> str:
        return self.given_id or f"chatcmpl-{self.id}"

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.start_s
