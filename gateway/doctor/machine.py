"""This machine as the checks see it: where the kernel tells what there is. Tests point it elsewhere."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Machine:
    """Paths and commands by which a check looks at the machine."""

    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")
    shm: Path = Path("/dev/shm")  # noqa: S108  looked at, never written to
    ray_address_file: Path = Path("/tmp/ray/ray_current_cluster")  # noqa: S108  where Ray itself writes it
    nvidia_smi: str = "nvidia-smi"
    python_version: tuple[int, int] = sys.version_info[:2]

    def memory_free_bytes(self) -> int:
        """What new processes can have: the kernel's estimate, or what the control group leaves, whichever is less."""
        for line in (self.proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, self._group_free_bytes())
        raise OSError(f"{self.proc}/meminfo names no MemAvailable")

    def _group_free_bytes(self) -> int:
        names = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
        for limit, usage in names:
            try:
                most = (self.cgroup / limit).read_text().strip()
                used = (self.cgroup / usage).read_text().strip()
            except OSError:  # the other version of control groups, or none
                continue
            return int(most) - int(used) if most != "max" else sys.maxsize
        return sys.maxsize

    def num_cores(self) -> int:
        return len(os.sched_getaffinity(0))

    def cpu_flags(self) -> frozenset[str]:
        """Of the first processor; empty where the kernel names none (ARM says `Features`)."""
        for line in (self.proc / "cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(value.split())
        return frozenset()

    def filesystem_of(self, path: Path) -> str:
        """The type of the file system that `path` lies on, by the longest mount point above it."""
        best, kind = -1, "unknown"
        for line in (self.proc / "self" / "mountinfo").read_text().splitlines():
            mount, _, after = line.partition(" - ")
            point = Path(mount.split()[4].replace("\\040", " "))
            if path.is_relative_to(point) and len(point.parts) >= best:
                best, kind = len(point.parts), after.split()[0]
        return kind

    def open_files_limit(self) -> int:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest directory above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
