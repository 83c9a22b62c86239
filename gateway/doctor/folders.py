"""Checks of the places that Tandem writes to, and of how many files it may open."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from pathlib import Path

from gateway.doctor.context import Context
from gateway.doctor.finding import Finding, fail, ok, warn
from gateway.doctor.machine import GIB, MIB, existing_parent
from gateway.doctor.rows import sqlite_file

LOW_DISK_BYTES = 5 * GIB
FULL_DISK_BYTES = 500 * MIB
LOW_SHM_BYTES = 512 * MIB
LOW_OPEN_FILES = 4096
NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "virtiofs"}
)


def check_data_directory(context: Context) -> Finding:
    """Writable, or makeable."""
    data = context.config.data
    place = existing_parent(data)
    if not place.is_dir():
        return fail(f"{place} is a file where a directory must be", f"mv {_quoted(place)} {_quoted(place)}.old")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return fail(f"{place} cannot be written ({error.strerror})", f"sudo chown -R {os.getuid()} {_quoted(place)}")
    return ok(f"{data} is writable" if place == data else f"{data} can be made")


def check_filesystem(context: Context) -> Finding:
    """SQLite's locks and its write-ahead log need a local disk."""
    path = sqlite_file(context.config.store.url)
    if path is None:
        return ok("the store is a database server")
    kind = context.machine.filesystem_of(path.absolute())
    if kind in NETWORK_FILESYSTEMS or kind.startswith("fuse."):
        return warn(
            f"{path} lies on {kind}: SQLite needs a local disk to be safe from a broken lock",
            context.tandem("serve", "--set", "store.url=sqlite:////var/lib/tandem/tandem.db"),
        )
    return ok(f"{path} lies on {kind}")


def check_disk(context: Context) -> Finding:
    place = existing_parent(context.config.data)
    free = shutil.disk_usage(place).free
    words = f"{free / GIB:.1f} GiB free under {place}"
    mend = f"du -xh -d 2 {_quoted(place)} | sort -h | tail"
    if free < FULL_DISK_BYTES:
        return fail(f"{words}: rows, checkpoints and images may not be written", mend)
    return warn(words, mend) if free < LOW_DISK_BYTES else ok(words)


def check_shared_memory(context: Context) -> Finding:
    """Replicas keep their own copies of adapters there, and Ray and vLLM exchange data through it."""
    shm = context.machine.shm
    mend = f"sudo mount -o remount,size=2G {shm}"
    if not shm.is_dir():
        return warn(f"there is no {shm}: copies of adapters go to {tempfile.gettempdir()}", f"sudo mkdir {shm}")
    total = shutil.disk_usage(shm).total
    words = f"{shm} has {total / GIB:.2f} GiB"
    return warn(f"{words}: little for adapters and Ray", mend) if total < LOW_SHM_BYTES else ok(words)


def check_open_files(context: Context) -> Finding:
    limit = context.machine.open_files_limit()
    if limit < LOW_OPEN_FILES:
        return warn(f"{limit} files may be open: each stream takes two", "ulimit -n 65536")
    return ok(f"{limit} files may be open")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
