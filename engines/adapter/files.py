"""Files that somebody else wrote, opened with care; and files of ours, written so that they last.

Nothing here knows adapters. Every read is bounded and refuses what is not a regular file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engines.errors import BadRequest

CHUNK_BYTES = 4 << 20


def open_regular(path: Path, *, follow_symlinks: bool = False) -> BinaryIO:
    """Opens a regular file for reading. Raises `BadRequest` if it is missing, a symlink, or anything else."""
    # O_NONBLOCK: opening a named pipe would wait for a writer for ever.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_symlinks else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise BadRequest(_why_not_opened(path, error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadRequest(f"{path.name} is not a regular file: replace it by one")
    return os.fdopen(descriptor, "rb", buffering=0)


def _why_not_opened(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"{path.name} is missing in {path.parent}: save it there"
    if error.errno == errno.ELOOP:
        return f"{path.name} is a symbolic link: replace it by the file itself"
    return f"{path.name} cannot be opened ({os.strerror(error.errno or 0)}): check the file and its permissions"


def size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def read_exactly(file: BinaryIO, num_bytes: int, name: str) -> bytes:
    """Exactly `num_bytes` from an unbuffered `file`. Raises `BadRequest` if it ends before."""
    parts: list[bytes] = []
    missing = num_bytes
    while missing:
        part = file.read(missing)
        if not part:
            raise BadRequest(f"{name} is truncated: {missing} bytes are missing. Copy it again")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def read_bounded(path: Path, max_bytes: int, *, follow_symlinks: bool = False) -> bytes:
    """The whole file. Raises `BadRequest` over `max_bytes`."""
    with open_regular(path, follow_symlinks=follow_symlinks) as file:
        size = size_of(file)
        if size > max_bytes:
            raise BadRequest(f"{path.name} has {size} bytes, more than the {max_bytes} allowed")
        return read_exactly(file, size, path.name)


def read_chunks(file: BinaryIO, num_bytes: int, name: str) -> Iterator[bytes]:
    """The next `num_bytes`, at most `CHUNK_BYTES` at a time."""
    while num_bytes:
        chunk = read_exactly(file, min(num_bytes, CHUNK_BYTES), name)
        num_bytes -= len(chunk)
        yield chunk


def sha256_of(file: BinaryIO) -> str:
    """Hex, of the whole of an unbuffered `file`, wherever its position is; leaves that at the end.

    In large pieces: each hands the interpreter's lock over twice, and a busy event loop is slow to give it back.
    """
    file.seek(0)
    digest, view = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    while num_bytes := os.readv(file.fileno(), [view]):
        digest.update(view[:num_bytes])
    return digest.hexdigest()


def parse_object(data: bytes, name: str) -> dict[str, object]:
    """A JSON object whose keys are unique at every level. Raises `BadRequest` for anything else."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error)[:200] if isinstance(error, ValueError) else "nested too deeply"
        raise BadRequest(f"{name} is not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"{name} is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{twice[:200]}' appears twice")
    return value


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not a JSON number")


def write_atomic(path: Path, data: bytes) -> None:
    """Writes all of `data` or nothing, durably: temporary file, fsync, rename, fsync of the directory."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
