"""Ties a server's life to its supervisor's: `python -I -S engines/lifeline.py -- COMMAND...`, run as a file.

The supervisor holds the writing end of a pipe that is our stdin. When the pipe closes, by whatever death of the
supervisor, the whole process group is killed. SIGTERM is passed on to the command; when the command ends, what it
left behind in the group is killed and its exit code (128 + N for signal N) is ours. Standard library only.

A fork of ours watches the same pipe: an actor whose Ray node dies kills its children, us among them, before it ends
itself, and then nobody else is left to kill the group.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

USAGE_EXIT = 2
NOT_STARTED_EXIT = 127


def group_members(group: int) -> tuple[int, ...]:
    """Living (not zombie) process ids of a process group, from /proc; empty once all are gone."""
    return tuple(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_in(entry, group))


def _is_in(entry: Path, group: int) -> bool:
    try:
        stat = (entry / "stat").read_text()
    except OSError:  # it ended while we looked
        return False
    state, _parent, its_group = stat.rpartition(")")[2].split()[:3]  # the name before it may hold spaces
    return int(its_group) == group and state not in "ZX"


def main(argv: Sequence[str]) -> int:
    if len(argv) < 2 or argv[0] != "--":
        sys.stderr.write("usage: python -I -S lifeline.py -- COMMAND...\n")
        return USAGE_EXIT
    return supervise(list(argv[1:]))


def supervise(command: list[str]) -> int:
    """Runs `command` in our own process group until it ends or stdin closes (then nothing of the group is left)."""
    if os.getpgrp() != os.getpid():
        os.setsid()
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminated: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: terminated.append(number))
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error}\n")
        return NOT_STARTED_EXIT
    _fork_second_watch()
    while child.poll() is None:
        readable, _, _ = select.select([0, wake_r], [], [])
        if 0 in readable and not os.read(0, 4096):
            os.killpg(os.getpgrp(), signal.SIGKILL)  # ourselves too: never returns
        if wake_r in readable:
            os.read(wake_r, 4096)
        if terminated:
            terminated.clear()
            child.terminate()
    _kill_the_rest()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _fork_second_watch() -> None:
    """Ends with the group: it kills the group when the pipe closes, and `_kill_the_rest` kills it."""
    if os.fork():
        return
    while os.read(0, 4096):
        continue
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _kill_the_rest() -> None:
    for pid in group_members(os.getpgrp()):
        if pid != os.getpid():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # it ended by itself
                continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
