"""The check for engine processes whose actor is gone: they hold memory, and nobody asks or ends them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from engines.served import TOKEN_VARIABLE
from gateway.doctor.context import Context
from gateway.doctor.finding import Finding, fail, ok

_ADOPTERS = frozenset({"raylet", "systemd", "init", "tini", "dumb-init"})
"""Who a process falls to when its parent dies; pid 1 is one by any name."""


def check_orphans(context: Context) -> Finding:
    """Engines of this data directory, on this machine: each must have a supervisor whose actor lives."""
    groups = engine_groups(context.config.log_root)
    orphans = sorted(group for group in groups if not _is_supervised(group))
    if orphans:
        words = f"engine process groups {', '.join(map(str, orphans))} outlived their actor"
        return fail(words, f"kill -9 {' '.join(f'-{group}' for group in orphans)}")
    return ok(f"{len(groups)} engine processes, each with its actor")


def engine_groups(log_root: Path) -> frozenset[int]:
    """Process groups of engines that write their log under `log_root`: each has the variable of an engine's token."""
    return frozenset(group for process in psutil.process_iter() for group in _group_of(process, log_root))


def _group_of(process: psutil.Process, log_root: Path) -> Iterator[int]:
    """The group of an engine's process; nothing for any other, or one that ended or is another user's."""
    proc = Path("/proc") / str(process.pid)
    try:
        if f"{TOKEN_VARIABLE}=".encode() in (proc / "environ").read_bytes():
            if (proc / "fd" / "1").readlink().is_relative_to(log_root):
                yield int((proc / "stat").read_text().rpartition(")")[2].split()[2])
    except OSError:
        return


def _is_supervised(group: int) -> bool:
    """The group's leader is the lifeline; its parent is the actor."""
    try:
        parent = psutil.Process(group).parent()
        return parent is not None and parent.pid != 1 and parent.name() not in _ADOPTERS
    except psutil.NoSuchProcess:
        return False
