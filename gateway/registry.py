"""The registry: verified copies of adapters, one directory a version, never changed and never reused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from engines.adapter import WEIGHTS_FILE, BaseModel, Parcel, VerifiedAdapter, install, pack, read_base, verify
from engines.adapter.files import open_regular, sha256_of
from engines.adapter.verify import refusing
from engines.config import EngineConfig
from engines.errors import AdapterRefused
from engines.remote_settings import why_no_adapters
from engines.types import VersionName
from gateway.store import Store
from gateway.types import AliasRow, VersionRow, VersionState


@dataclass(frozen=True, slots=True)
class Registry:
    """Rows in the store, files under `root`. Every method blocks: call it from a thread."""

    root: Path
    store: Store
    engines: Mapping[str, EngineConfig]

    def base_of(self, engine: str) -> BaseModel:
        return read_base(self.engines[engine].model_path())

    def check_takes_adapters(self, engine: str) -> None:
        """Raises `AdapterRefused` for one that holds none."""
        if not self.engines[engine].num_slots:
            raise AdapterRefused(why_no_adapters(engine))

    def register(self, alias: str, directory: Path) -> tuple[VersionRow, VerifiedAdapter]:
        """Verifies `directory`, copies it, adds the row; returns that and the copy as verified.

        Raises `AdapterRefused` and changes nothing.
        """
        row = self.store.aliases.get(alias)
        self.check_takes_adapters(row.engine)
        verified = self._verify(directory, row.engine)
        name = VersionName(alias, self.store.versions.next_number(alias))
        path = install(verified, self.root / str(name))
        version = _row_of(name, row, verified, path, job_of(directory))
        self.store.versions.add(version)
        return version, replace(verified, path=path)

    def reverify(self, row: VersionRow) -> VerifiedAdapter:
        """Verifies the registry's own copy again, for the engine of `row`. Raises `AdapterRefused`.

        Files can rot or be tampered with: that the weights are those that were registered, `check_weights` or `read`
        says, which takes longer.
        """
        return self._verify(row.path, row.engine, row.weights_sha256)

    def check_weights(self, row: VersionRow) -> None:
        """Raises `AdapterRefused` unless they hash to what was registered."""
        with refusing(), open_regular(row.path / WEIGHTS_FILE) as file:
            sha256 = sha256_of(file)
        if sha256 != row.weights_sha256:
            raise _changed(row)

    def read(self, row: VersionRow) -> Parcel:
        """All files of a version. Raises `AdapterRefused` unless the weights hash to what was registered."""
        parcel = pack(row.name, row.path)
        if parcel.sha256_of(WEIGHTS_FILE) != row.weights_sha256:
            raise _changed(row)
        return parcel

    def _verify(self, directory: Path, engine: str, known_sha256: str | None = None) -> VerifiedAdapter:
        return verify(directory, self.base_of(engine), self.engines[engine].max_lora_rank, known_sha256)


def _changed(row: VersionRow) -> AdapterRefused:
    return AdapterRefused(
        f"the files of {row.name} in {row.path} are not those that were registered: register it again"
    )


def job_of(directory: Path) -> str | None:
    """The job whose checkpoint this is (`JOB/checkpoints/step-N`); None for an adapter from elsewhere."""
    return directory.parents[1].name if directory.parent.name == "checkpoints" else None


def _row_of(name: VersionName, alias: AliasRow, verified: VerifiedAdapter, path: Path, job: str | None) -> VersionRow:
    manifest = verified.manifest
    return VersionRow(
        name=name,
        engine=alias.engine,
        state=VersionState.VERIFIED,
        path=path,
        base_hash=verified.base_hash,
        weights_sha256=verified.weights_sha256,
        rank=verified.rank,
        proof="differences" if manifest and manifest.probe else "hashes",
        created=datetime.now(UTC),
        parent=manifest.parent if manifest else None,
        data_hash=manifest.data_hash if manifest else None,
        job=job,
        metrics=tuple(sorted(manifest.metrics.items())) if manifest else (),
    )
