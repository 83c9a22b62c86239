"""`checkpoints/step-N`: whole or not there.

A checkpoint is written under a hidden name, every file of it fsynced, then renamed. What a kill leaves under a hidden
name is removed by the next run.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines.adapter.files import sync_directory
from engines.errors import Conflict
from learners.whole import sync_tree

TRAINER_STATE = "trainer_state"
_NAME = re.compile(r"^step-(0|[1-9][0-9]*)$")
_PARTIAL = ".partial-"


@dataclass(frozen=True, slots=True, order=True)
class Checkpoint:
    """A whole checkpoint: the adapter's three files, and `trainer_state/` to resume from."""

    step: int
    path: Path

    @property
    def trainer_state(self) -> Path:
        return self.path / TRAINER_STATE


def list_checkpoints(folder: Path) -> tuple[Checkpoint, ...]:
    """The whole checkpoints in `folder`, the oldest first."""
    if not folder.is_dir():
        return ()
    named = ((_NAME.match(path.name), path) for path in folder.iterdir() if path.is_dir())
    return tuple(sorted(Checkpoint(int(match[1]), path) for match, path in named if match))


@contextmanager
def writing_checkpoint(folder: Path, step: int) -> Iterator[Path]:
    """Yields an empty folder to fill (with `trainer_state/` inside); it becomes `step-N` if the block ends well.

    Raises `Conflict` if there is one already: a checkpoint is never replaced.
    """
    target = folder / f"step-{step}"
    if target.exists():
        raise Conflict(f"{target} is there already: a checkpoint is never replaced; give this job another output")
    partial = folder / f"{_PARTIAL}{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / TRAINER_STATE).mkdir(parents=True)
    yield partial
    sync_tree(partial)
    partial.rename(target)
    sync_directory(folder)


def remove_partial(folder: Path) -> int:
    """Removes what killed runs left half-written; answers how many there were."""
    leftovers = list(folder.glob(f"{_PARTIAL}*"))
    for leftover in leftovers:
        shutil.rmtree(leftover)
    return len(leftovers)
