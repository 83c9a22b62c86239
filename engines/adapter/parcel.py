"""An adapter's files as bytes: how a version travels to replicas, none of which need see the registry's disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from engines.adapter.directory import ADAPTER_FILES
from engines.types import VersionName


@dataclass(frozen=True, slots=True)
class ParcelFile:
    """One file: its name in the adapter's directory, its bytes and their SHA-256 (hex)."""

    name: str
    data: bytes
    sha256: str

    @classmethod
    def of(cls, name: str, data: bytes) -> ParcelFile:
        return cls(name, data, hashlib.sha256(data).hexdigest())

    def __repr__(self) -> str:
        return f"ParcelFile({self.name!r}, {len(self.data)} bytes, {self.sha256[:12]})"


@dataclass(frozen=True, slots=True)
class Parcel:
    """All files of one version."""

    version: VersionName
    files: tuple[ParcelFile, ...]

    def hashes(self) -> dict[str, str]:
        """File name -> SHA-256 (hex)."""
        return {file.name: file.sha256 for file in self.files}

    def sha256_of(self, name: str) -> str | None:
        """None if there is no such file."""
        return next((file.sha256 for file in self.files if file.name == name), None)


def pack(version: VersionName, directory: Path) -> Parcel:
    """Reads a registered version. Blocks."""
    present = [name for name in ADAPTER_FILES if (directory / name).exists()]
    return Parcel(version, tuple(ParcelFile.of(name, (directory / name).read_bytes()) for name in present))
