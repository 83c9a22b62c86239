"""The adapter of a step as an engine gets it: a version of its own, its files, and the learner's half of the proof."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engines.adapter import ProbeRecord, pack, verify, write_manifest
from engines.adapter.base import BaseModel
from engines.adapter.directory import WEIGHTS_FILE
from engines.types import VersionName
from learners.config import JobConfig
from learners.grpo.delivery import Push
from learners.lora import save_adapter
from learners.manifest import Origin

if TYPE_CHECKING:
    from peft import PeftModel

    from learners.probe import Probe


class Packer:
    """`run` counts the starts of a job, so that no name is ever used twice: a resumed job makes other steps anew."""

    def __init__(self, config: JobConfig, run: int, model: PeftModel, probe: Probe, base: BaseModel, data_hash: str):
        self._config = config
        self._alias = f"{config.name}.{run}/step"
        self._model = model
        self._probe = probe
        self._base = base
        self._origin = Origin(config, base, data_hash)

    def version_after(self, step: int) -> VersionName:
        """Number 1 is the adapter that the job starts from: number 0 would be an engine's bare base."""
        return VersionName(self._alias, step + 1)

    def push(self, step: int) -> Push:
        """Raises `AdapterRefused` if the weights are NaN or otherwise nothing that an engine may see."""
        with tempfile.TemporaryDirectory(prefix="tandem-push-") as name:
            folder = Path(name)
            records = self.write(folder, {"step": float(step)})
            verified = verify(folder, self._base, max_rank=self._config.rank)
            version = self.version_after(step)
            return Push(version, pack(version, folder), verified.modules, records)

    def write(self, folder: Path, metrics: Mapping[str, float]) -> tuple[ProbeRecord, ...]:
        """The adapter's three files."""
        save_adapter(self._model, folder)
        records = self._probe.records()
        write_manifest(folder, self._origin.manifest(folder / WEIGHTS_FILE, metrics, records))
        return records
