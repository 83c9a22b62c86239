"""The configuration of a training job: one TOML file in, one frozen `SftConfig` out. Imports no model library.

The gateway reads it too, to refuse a bad hyperparameter by name before a job starts. Relative paths of a job's file
are resolved against the jobs root: `root` in the file, else `TANDEM_JOBS__ROOT`, else `data/jobs` under the working
directory. Inside the copy that `ray job submit` makes there is no such default, since the copy is deleted afterwards.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from engines.config import LORA_RANKS, Section
from engines.errors import BadRequest
from learners.submission import submission_id

ROOT_VARIABLE = "TANDEM_JOBS__ROOT"
DEFAULT_ROOT = "data/jobs"


class SftConfig(Section):
    """Supervised fine-tuning of a LoRA adapter: the answers of a data file, on top of an unquantized base."""

    method: Literal["sft"] = "sft"
    """The training method."""
    name: str = Field("sft", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
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
    learning_rate: float = Field(2e-3, gt=0, le=1)
    """Of the first step; decays linearly to zero."""
    batch_size: int = Field(16, ge=1)
    """Examples of one optimizer step."""
    gradient_accumulation: int = Field(1, ge=1)
    """In how many pieces a batch is computed; divides `batch_size`."""
    epochs: int | None = Field(None, ge=1)
    """How often each example is used; by default once. Not together with `max_steps`."""
    max_steps: int | None = Field(None, ge=1)
    """How many optimizer steps are taken, however many epochs that is."""
    max_length: int | None = Field(None, ge=16)
    """Tokens of an example, images included; a longer one counts as a bad row. Empty: no bound."""
    save_every: int = Field(25, ge=1)
    """Steps between checkpoints; the last step always writes one."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """The job fails if more than this share of the rows is bad."""
    probe_size: int = Field(4, ge=1, le=64)
    """How many fixed prompts the manifest carries as proof of delivery."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the order of examples and of the adapter's first weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the job trains; `auto` takes a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The base's precision; `auto` is float32 on a CPU and bfloat16 on a GPU. The adapter is always float32."""
    gradient_checkpointing: bool = False
    """Less memory for more time."""
    num_threads: int = Field(1, ge=1, le=256)
    """Threads of the CPU's matrix products."""

    @field_validator("gradient_accumulation")
    @classmethod
    def _pieces_are_whole(cls, pieces: int, info: Any) -> int:
        batch_size = info.data.get("batch_size")
        if batch_size is not None and batch_size % pieces:
            raise ValueError(f"must divide batch_size, which is {batch_size}")
        return pieces

    @model_validator(mode="after")
    def _one_length(self) -> SftConfig:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps exclude each other: give one")
        return self

    @property
    def job_path(self) -> Path:
        """The job directory. Absolute once `load_job` has returned."""
        return Path(self.output) if self.output else Path(self.root or DEFAULT_ROOT) / self.name

    def to_toml(self) -> str:
        """The configuration as TOML; `load_job` reads it back as an equal value."""
        values = self.model_dump(exclude_none=True)
        return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def load_job(path: Path, overrides: Sequence[str] = ()) -> SftConfig:
    """Reads a job's TOML file, with `key=value` overrides on top; all paths of the answer are absolute.

    Raises `BadRequest` whose message is one `path.to.key: reason` a line.
    """
    values = _read_toml(path)
    for override in overrides:
        key, value = _parse_override(override)
        values[key] = value
    return resolve(validate(values))


def validate(values: Mapping[str, Any]) -> SftConfig:
    """Checks names and bounds, touches no file. Raises `BadRequest` as `load_job` does."""
    try:
        return SftConfig.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item["loc"], item["type"], item["msg"]) for item in error.errors()]
        raise BadRequest("\n".join(lines), param=lines[0].partition(":")[0]) from error


def resolve(config: SftConfig) -> SftConfig:
    """Makes every path absolute and checks that what is read is there. Raises `BadRequest`."""
    needs_root = config.output is None or not all(map(os.path.isabs, _paths(config)))
    root = _jobs_root(config) if needs_root else Path(config.root or "/")

    def absolute(text: str) -> str:
        return os.path.normpath(root / text)

    resolved = config.model_copy(
        update={
            "root": str(root) if needs_root else config.root,
            "output": absolute(config.output or config.name),
            "model": absolute(config.model),
            "data": absolute(config.data),
            "parent": absolute(config.parent) if config.parent else None,
        }
    )
    _check_inputs(resolved)
    return resolved


def _paths(config: SftConfig) -> Iterable[str]:
    return (path for path in (config.output, config.model, config.data, config.parent) if path)


def _jobs_root(config: SftConfig) -> Path:
    root = config.root or os.environ.get(ROOT_VARIABLE)
    if submission_id() and not (root and os.path.isabs(root)):
        raise BadRequest(
            "root: this job runs in a copy that Ray deletes, so relative paths need an absolute start: "
            f'set root = "/absolute/path" in the job\'s file, or {ROOT_VARIABLE}',
            param="root",
        )
    return Path(os.path.abspath(root or DEFAULT_ROOT))


def _check_inputs(config: SftConfig) -> None:
    model = Path(config.model)
    if "quantization_config" in _read_model_config(model):
        raise BadRequest(
            f"model: {model} is quantized; name the directory of the base that it was made from", param="model"
        )
    if not Path(config.data).is_file():
        raise BadRequest(f"data: no file at {config.data}", param="data")
    if config.parent and not (Path(config.parent) / "adapter_config.json").is_file():
        raise BadRequest(
            f"parent: {config.parent} is not an adapter's directory: it has no adapter_config.json", param="parent"
        )


def _read_model_config(model: Path) -> Mapping[str, Any]:
    try:
        values = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(
            f"model: {model} is not a model's directory: its config.json cannot be read ({error.strerror})",
            param="model",
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"model: {model}/config.json is not JSON: copy the model again", param="model") from error
    if not isinstance(values, dict):
        raise BadRequest(f"model: {model}/config.json is not a JSON object: copy the model again", param="model")
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"--config: cannot read {path}: {error.strerror}", param="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"--config: {path} is not TOML: {error}", param="config") from error


def _parse_override(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator or not key:
        raise BadRequest(f"--set: '{text}' is not key=value", param="set")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value.strip()


def _explain(location: tuple[int | str, ...], kind: str, message: str) -> str:
    name = ".".join(str(part) for part in location) or "job"
    if kind != "extra_forbidden":
        return f"{name}: {message.removeprefix('Value error, ')}"
    close = difflib.get_close_matches(name, SftConfig.model_fields, n=1)
    return f"{name}: no such setting" + (f"; did you mean {close[0]}?" if close else "")
