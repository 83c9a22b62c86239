"""Which process is the gateway: a file that the process keeps locked for as long as it lives.

The lock is the truth, the number in it only says whom to signal: a crash leaves no stale holder behind.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from engines.errors import Conflict


class PidFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Holds the file until this process ends. Raises `Conflict` if another process holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Conflict(
                f"a gateway already runs on this data directory (process {self.holder()}): use it, or end it first "
                "with `tandem stop`"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def holder(self) -> int | None:
        """The process that holds the file now, or None."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.read(descriptor, 32) or b"0") or None
        finally:
            os.close(descriptor)
        return None
