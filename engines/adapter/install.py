"""Copies a verified adapter to where engines read it, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from pathlib import Path

from engines.adapter.files import CHUNK_BYTES, open_regular, sync_directory
from engines.adapter.verify import VerifiedAdapter, refusing
from engines.errors import AdapterRefused, Conflict

_READ_ONLY = 0o444


def install(verified: VerifiedAdapter, destination: Path) -> Path:
    """Copies only the adapter's own files into the new directory `destination` and returns it.

    Durable and atomic; the files are read-only. What was copied is hashed again, so that nothing that changed since
    `verify` gets in. Raises `AdapterRefused` for that, and `Conflict` if `destination` exists: versions are immutable.
    """
    if destination.exists() or destination.is_symlink():
        raise _taken(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        for name, sha256 in verified.files():
            _copy(verified.path / name, temporary / name)
            _check_copy(temporary / name, sha256)
        sync_directory(temporary)
        _rename(temporary, destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_directory(destination.parent)
    return destination


def _copy(source: Path, target: Path) -> None:
    with refusing(), open_regular(source) as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, CHUNK_BYTES)
        writer.flush()
        os.fchmod(writer.fileno(), _READ_ONLY)
        os.fsync(writer.fileno())


def _check_copy(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        copied = hashlib.file_digest(file, "sha256").hexdigest()
    if copied != sha256:
        raise AdapterRefused(f"{path.name} changed after it was verified: register the adapter again", param="path")


def _rename(temporary: Path, destination: Path) -> None:
    try:
        temporary.rename(destination)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise _taken(destination) from error
        raise


def _taken(destination: Path) -> Conflict:
    return Conflict(f"{destination} exists: versions are never overwritten, take the next number", param="path")
