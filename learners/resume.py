"""Where a job goes on: its newest whole checkpoint, if its data is still what that was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from engines.adapter import read_manifest
from engines.errors import Conflict
from learners.checkpoint import Checkpoint
from learners.config import JobConfig
from learners.data.readers import DataSet, Item
from learners.run import Run

C = TypeVar("C", bound=JobConfig)


def resume_point(run: Run[C], data: DataSet[Item]) -> Checkpoint | None:
    """The newest whole checkpoint, whose metrics become the result's.

    Raises `Conflict` if the data is not what it was trained on.
    """
    newest = run.job.newest_checkpoint()
    step = newest.step if newest else 0
    manifest = read_manifest(newest.path) if newest else None
    if newest and manifest and manifest.data_hash != data.data_hash:
        raise Conflict(
            f"data: {data.path} has changed since {newest.path} was trained on it: "
            "put the old file back, or give this job another name or output",
            param="data",
        )
    metrics = {name: value for name, value in manifest.metrics.items() if name != "step"} if manifest else {}
    run.update(step=step, metrics=metrics)
    if run.is_resumed:
        run.job.events.write("resumed", f"going on after step {step}", step=step)
    return newest


def adapter_to_load(config: JobConfig, newest: Checkpoint | None) -> Path | None:
    """That of the checkpoint, else the parent's, else none."""
    if newest:
        return newest.path
    return Path(config.parent) if config.parent else None
