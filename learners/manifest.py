"""What a learner writes into the manifest of its adapters."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.adapter import Manifest, ProbeRecord, tensor_hashes
from engines.adapter.base import BaseModel
from engines.errors import BadRequest
from engines.types import VersionName
from learners.config import JobConfig


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a job's adapters come from: the same for all of its checkpoints."""

    config: JobConfig
    base: BaseModel
    data_hash: str

    def manifest(self, weights: Path, metrics: Mapping[str, float], probe: tuple[ProbeRecord, ...]) -> Manifest:
        """The manifest of the adapter whose weights file is `weights`."""
        return Manifest(
            family=self.base.profile.name,
            base_hash=self.base.base_hash,
            rank=self.config.rank,
            alpha=self.config.alpha,
            target_modules=self.base.profile.peft_targets,
            tensors=dict(tensor_hashes(weights)),
            dtype="float32",
            parent=parent_version(self.config),
            data_hash=self.data_hash,
            code_version=code_version(),
            metrics=dict(metrics),
            probe=probe,
        )


def parent_version(config: JobConfig) -> str | None:
    """The version that training goes on from: as configured, or as the registry names the parent's directory."""
    if config.parent_version or not config.parent:
        return config.parent_version
    try:
        return str(VersionName.parse(Path(config.parent).name))
    except BadRequest:
        return None


def code_version() -> str:
    """The package's version and a hash of the learners' source, which a copy without git has too."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return f"{_package_version()}+{digest.hexdigest()[:12]}"


def _package_version() -> str:
    try:
        return importlib.metadata.version("tandem-vlm")
    except importlib.metadata.PackageNotFoundError:
        return "0"  # a copy of the source that is not installed
