"""A directory that is whole or not there: filled under a hidden name, every file fsynced, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.adapter.files import sync_directory
from engines.errors import Conflict


@contextmanager
def writing_directory(target: Path, param: str) -> Iterator[Path]:
    """Yields an empty directory beside `target` to fill; it becomes `target` if the block ends well, else it goes.

    Raises `Conflict` (of the setting `param`) if `target` is there, before the block or after it: what was written is
    never replaced. Its name is its own, so that two may be filled for one target; a run that is killed leaves its.
    """
    _check_free(target, param)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        yield partial
        sync_tree(partial)
        _check_free(target, param)
        _rename(partial, target, param)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_directory(target.parent)


def _check_free(target: Path, param: str) -> None:
    if target.exists() or target.is_symlink():
        raise Conflict(f"{target} is there already and is not replaced: name another directory", param=param)


def _rename(partial: Path, target: Path, param: str) -> None:
    """No directory that holds something is renamed over, nor is a file."""
    try:
        partial.rename(target)
    except OSError:
        _check_free(target, param)
        raise


def sync_tree(root: Path) -> None:
    """Makes all files and names under `root` durable."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            with Path(folder, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(folder))
