"""A replica's own copies of adapters: what its engine reads lies here and changes for nobody else.

In memory (/dev/shm) where that is large enough, so a load costs no disk. Copies that no engine reads are spares, kept
while there is room: a publish then sends nothing. Files can rot: what is not the weights is hashed before each load,
and the weights by the engine's process, which reads them anyway. Nothing here needs to last: an engine that starts
anew holds nothing, and is sent again what it needs.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from engines.adapter.directory import WEIGHTS_FILE
from engines.adapter.files import open_regular, sha256_of
from engines.adapter.parcel import Parcel
from engines.errors import BadRequest, EngineFault, NotFound, Unavailable
from engines.types import VersionName

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  a mount point, not a temporary file
_MIN_FREE_BYTES = 1 << 30
MAX_SPARE_BYTES = 1 << 30
MIN_IDLE_S = 120.0
"""A copy that was sent or asked for since is about to be loaded, by whoever did, and is no spare."""


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
        self._asked_s: dict[VersionName, float] = {}

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
        self._hashes.pop(parcel.version, None)  # the newest comes last
        self._hashes[parcel.version] = parcel.hashes()
        self._asked_s[parcel.version] = time.monotonic()
        return directory

    def has(self, version: VersionName, hashes: Mapping[str, str]) -> bool:
        """Whether the copy of `version` was made of just these files (file name -> SHA-256, hex), and all are there."""
        directory = self._directory(version)
        is_there = self._hashes.get(version) == hashes and all((directory / name).is_file() for name in hashes)
        if is_there:
            self._asked_s[version] = time.monotonic()
        return is_there

    def open(self, version: VersionName) -> Path:
        """The copy's directory, for an engine. Raises `NotFound` if there is none.

        Raises `EngineFault` if a file is not what was sent; the weights are looked at by whoever reads them.
        """
        hashes = self._hashes.get(version)
        if hashes is None:
            raise NotFound(f"{version} was not copied here; copy it, then load it", param="version")
        for name in hashes.keys() - {WEIGHTS_FILE}:
            self._check(version, name)
        return self._directory(version)

    def check_weights(self, version: VersionName, read_sha256: str | None) -> None:
        """Raises `EngineFault` if the weights are not what was sent. `read_sha256` is of what an engine has read, None
        if it has read nothing: the file is hashed only if that does not tell that all is well."""
        if read_sha256 != self._hashes[version].get(WEIGHTS_FILE):
            self._check(version, WEIGHTS_FILE)

    def trim(self, in_use: Collection[VersionName], needed_bytes: int = 0) -> None:
        """Drops spares, the oldest first, until they and what is free, `needed_bytes` aside, are within bounds."""
        newest_s = time.monotonic() - MIN_IDLE_S
        spares = [one for one in self._hashes if one not in in_use and self._asked_s[one] <= newest_s]
        sizes = [self._size(version) for version in spares]
        for number, version in enumerate(spares):
            free_bytes = shutil.disk_usage(self.root.parent).free - needed_bytes
            if sum(sizes[number:]) + needed_bytes <= MAX_SPARE_BYTES and free_bytes >= _MIN_FREE_BYTES:
                return
            self.drop(version)

    def versions(self) -> tuple[VersionName, ...]:
        return tuple(self._hashes)

    def drop(self, version: VersionName) -> None:
        """Removes a copy; one that is not there does no harm."""
        self._hashes.pop(version, None)
        self._asked_s.pop(version, None)
        shutil.rmtree(self._directory(version), ignore_errors=True)

    def clear(self) -> None:
        """Removes all, also what an earlier process of the same owner left behind."""
        self._hashes.clear()
        self._asked_s.clear()
        shutil.rmtree(self.root, ignore_errors=True)

    def _check(self, version: VersionName, name: str) -> None:
        path = self._directory(version) / name
        if _hash_of(path) != self._hashes[version][name]:
            self.drop(version)
            raise EngineFault(
                f"this replica's copy of {version} is damaged: {name} in {path.parent} is not what was sent. "
                "It does not serve; publish again, which copies it anew"
            )

    def _size(self, version: VersionName) -> int:
        return sum(path.stat().st_size for path in self._directory(version).glob("*"))

    def _directory(self, version: VersionName) -> Path:
        return self.root / str(version).replace("/", "%2F")  # no version has a percent sign of its own


def _hash_of(path: Path) -> str | None:
    try:
        with open_regular(path) as file:
            return sha256_of(file)
    except (BadRequest, OSError):
        return None
