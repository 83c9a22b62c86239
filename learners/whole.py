"""A directory that is whole or not there: filled under a hidden name, every file fsynced, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.adapter.files import sync_directory
from engines.errors import Conflict


@contextmanager
def writing_directory(target: Path, param: str) -> Iterator[Path]:
    """Yields an empty directory beside `target` to fill; it becomes `target` if the block ends well, else it goes.

    Raises `Conflict` (of the setting `param`) if `target` is there: what was written is never replaced.
    """
    if target.exists() or target.is_symlink():
        raise Conflict(f"{target} is there already and is not replaced: name another directory", param=param)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir()
    try:
        yield partial
        sync_tree(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_directory(target.parent)


def sync_tree(root: Path) -> None:
    """Makes all files and names under `root` durable."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            with Path(folder, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(folder))
