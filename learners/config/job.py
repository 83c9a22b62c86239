"""What every training job has: a name, a directory, a base, data, and a LoRA adapter to train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from engines.config import LORA_RANKS, Section

DEFAULT_ROOT = "data/jobs"


class JobConfig(Section):
    """The settings that all methods share. `path_fields` names those that are paths of inputs."""

    path_fields: ClassVar[tuple[str, ...]] = ("model", "data", "parent")

    method: str
    """The training method."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """The job's name, and that of its directory under `root` unless `output` names another."""
    root: str | None = None
    """Where relative paths of this file start; empty: `TANDEM_JOBS__ROOT`, else `data/jobs`."""
    output: str | None = None
    """The job directory; by default `root/name`. Running the same one again resumes it."""
    model: str
    """The directory of the unquantized base."""
    data: str
    """A JSONL or Parquet file of rows."""
    parent: str | None = None
    """An adapter directory to go on from."""
    parent_version: str | None = None
    """The version of `parent`, for the manifest. Empty: the name of its directory, if that is `alias@N`."""
    rank: int = Field(16, ge=1, le=max(LORA_RANKS))
    """The LoRA rank; one that an engine accepts."""
    alpha: int = Field(32, ge=1)
    """The LoRA scale is alpha / rank."""
    learning_rate: float = Field(gt=0, le=1)
    """Of the first step."""
    epochs: int | None = Field(None, ge=1)
    """How often each row is used; by default once. Not together with `max_steps`."""
    max_steps: int | None = Field(None, ge=1)
    """How many optimizer steps are taken, however many epochs that is."""
    save_every: int = Field(25, ge=1)
    """Steps between checkpoints; the last step always writes one."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """The job fails if more than this share of the rows is bad."""
    probe_size: int = Field(4, ge=1, le=64)
    """How many fixed prompts the manifest carries as proof of delivery."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the order of rows and of the adapter's first weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the job trains; `auto` takes a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The base's precision; `auto` is float32 on a CPU and bfloat16 on a GPU. The adapter is always float32."""
    num_threads: int = Field(1, ge=1, le=256)
    """Threads of the CPU's matrix products."""

    @model_validator(mode="after")
    def _one_length(self) -> JobConfig:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps exclude each other: give one")
        return self

    @property
    def job_path(self) -> Path:
        """The job directory. Absolute once `load_job` has returned."""
        return Path(self.output) if self.output else Path(self.root or DEFAULT_ROOT) / self.name

    def to_toml(self) -> str:
        """The configuration as TOML; `load_job` reads it back as an equal value."""
        values = self.model_dump(exclude_none=True, mode="json")
        return "".join(f"{key} = {_to_toml(value)}\n" for key, value in values.items())


def _to_toml(value: Any) -> str:
    """Sections become inline tables: a resolved configuration is read by programs."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_to_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_to_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
