"""A replica's own copies of adapters: what its engine reads lies here and changes for nobody else.

In memory (/dev/shm) where that is large enough, so a load costs no disk. A copy stays until the engine has dropped the
adapter, and is hashed before each load: an engine is never handed files that rotted. Nothing here needs to last: an
engine that starts anew holds nothing, and is sent again what it needs.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from engines.adapter.parcel import Parcel
from engines.errors import EngineFault, NotFound, Unavailable
from engines.types import VersionName

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  a mount point, not a temporary file
_MIN_FREE_BYTES = 1 << 30


def copies_root(owner: str) -> Path:
    """Where the replica of the actor called `owner` keeps its copies: one directory for each actor's name."""
    name = f"tandem-{hashlib.sha256(owner.encode()).hexdigest()[:16]}"
    roomy = _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free >= _MIN_FREE_BYTES
    return (_SHARED_MEMORY if roomy else Path(tempfile.gettempdir())) / name


class AdapterCopies:
    """One directory for each version under `root`. Every method blocks; the owner calls one at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._hashes: dict[VersionName, dict[str, str]] = {}

    def put(self, parcel: Parcel) -> Path:
        """Writes the files, whole or not at all, over what is there of that version. `Unavailable` without room."""
        directory = self._directory(parcel.version)
        temporary = self.root / f".{directory.name}.{secrets.token_hex(4)}.tmp"
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.mkdir()
            for file in parcel.files:
                (temporary / file.name).write_bytes(file.data)
            shutil.rmtree(directory, ignore_errors=True)
            temporary.rename(directory)
        except OSError as error:
            raise Unavailable(
                f"the files of {parcel.version} cannot be written to {self.root} ({error.strerror}): make room there"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._hashes[parcel.version] = {file.name: file.sha256 for file in parcel.files}
        return directory

    def is_same(self, parcel: Parcel) -> bool:
        """Whether the copy of the parcel's version was made of the same files."""
        return self._hashes.get(parcel.version) == {file.name: file.sha256 for file in parcel.files}

    def check(self, version: VersionName) -> Path:
        """The copy's directory. Raises `NotFound` if there is none, `EngineFault` if it is not what was sent."""
        hashes = self._hashes.get(version)
        if hashes is None:
            raise NotFound(f"{version} was not copied here; copy it, then load it", param="version")
        directory = self._directory(version)
        for name, sha256 in hashes.items():
            if _hash_of(directory / name) != sha256:
                raise EngineFault(
                    f"this replica's copy of {version} is damaged: {name} in {directory} is not what was sent. "
                    "Nothing was loaded; publish again, which copies it anew"
                )
        return directory

    def versions(self) -> tuple[VersionName, ...]:
        return tuple(self._hashes)

    def drop(self, version: VersionName) -> None:
        """Removes a copy; one that is not there does no harm."""
        self._hashes.pop(version, None)
        shutil.rmtree(self._directory(version), ignore_errors=True)

    def clear(self) -> None:
        """Removes all, also what an earlier process of the same owner left behind."""
        self._hashes.clear()
        shutil.rmtree(self.root, ignore_errors=True)

    def _directory(self, version: VersionName) -> Path:
        return self.root / str(version).replace("/", "%2F")  # no version has a percent sign of its own


def _hash_of(path: Path) -> str | None:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
