"""`events.jsonl`: what a job did, one JSON object a line, appended and fsynced line by line.

A line is there or not: what a kill left of a torn last line is cut off when the log is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Level = Literal["info", "warning", "error"]


class Event(BaseModel):
    """One line. `type` names what happened: started, data, step, checkpoint, resumed, probe, succeeded, failed,
    cancelled; in GRPO also push, evaluation, evaluation_interrupted, bound, dropped, flat, truncated, skipped,
    not_closed. A defect's `failed` holds its traceback."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: datetime
    level: Level
    type: str
    message: str
    data: dict[str, Any] = Field(default_factory=dict)


class EventLog:
    """Appends to one job's events. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> EventLog:
        _cut_torn_line(self._path)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def write(self, type: str, message: str, *, level: Level = "info", **data: Any) -> None:
        event = Event(time=datetime.now(UTC), level=level, type=type, message=message, data=data)
        line = json.dumps(event.model_dump(mode="json"), separators=(",", ":")) + "\n"
        _write_all(self._descriptor, line.encode())
        os.fsync(self._descriptor)


def read_events(path: Path) -> Iterator[Event]:
    """The whole lines of a log, also of one that is being written."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield Event.model_validate_json(line)


def consumed_rows(path: Path) -> list[str]:
    """Ids of the examples that the job's weights have seen, in order.

    Steps after the checkpoint that a resume went back to are not in the weights, hence not in the list.
    """
    steps: dict[int, list[str]] = {}
    for event in read_events(path):
        if event.type == "resumed":
            steps = {step: rows for step, rows in steps.items() if step <= event.data["step"]}
        elif event.type == "step":
            steps[event.data["step"]] = event.data["rows"]
    return [row for step in sorted(steps) for row in steps[step]]


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
