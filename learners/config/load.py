"""From a job's TOML file, with overrides on top, to a checked configuration whose paths are absolute.

Relative paths of a job's file are resolved against the jobs root: `root` in the file, else `TANDEM_JOBS__ROOT`, else
`data/jobs` under the working directory. Inside the copy that `ray job submit` makes there is no such default, since the
copy is deleted afterwards.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from engines.config import Section
from engines.errors import BadRequest
from learners.config.export import ExportConfig
from learners.config.grpo import GrpoConfig
from learners.config.job import DEFAULT_ROOT, JobConfig
from learners.config.sft import SftConfig
from learners.submission import submission_id

ROOT_VARIABLE = "TANDEM_JOBS__ROOT"
METHODS: dict[str, type[JobConfig]] = {"sft": SftConfig, "grpo": GrpoConfig}
C = TypeVar("C", bound=JobConfig)
S = TypeVar("S", bound=Section)


def load_job(path: Path, overrides: Sequence[str] = (), kind: type[C] | None = None) -> C:
    """Reads a job's TOML file, with `key=value` overrides on top (`rollout.engine=small` reaches into a section).

    `kind` is what the caller is about to run: a file of another method is refused, one that names none is of it.
    Raises `BadRequest` whose message is one `path.to.key: reason` a line.
    """
    return resolve(validate(read_settings(path, overrides), kind))


def load_export(
    path: Path | None, overrides: Sequence[str] = (), options: Mapping[str, str] | None = None
) -> ExportConfig:
    """As `load_job`, for an export: `options` go over `overrides`, and relative paths start where the command runs."""
    values = {**(read_settings(path, overrides) if path else apply({}, overrides)), **(options or {})}
    return check(values, ExportConfig)


def read_settings(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """What a TOML file says, with `key=value` overrides on top. Raises `BadRequest`."""
    return apply(_read_toml(path), overrides)


def apply(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Puts `key=value` overrides into `values`, and answers it. Raises `BadRequest`."""
    for override in overrides:
        _put(values, *_parse_override(override))
    return values


def validate(values: Mapping[str, Any], kind: type[C] | None = None) -> C:
    """Checks names and bounds, touches no file. Raises `BadRequest` as `load_job` does."""
    return check(values, _kind_of(values, kind))


def check(values: Mapping[str, Any], kind: type[S]) -> S:
    """`values` as a `kind`. Raises `BadRequest` whose message is one `path.to.key: reason` a line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item["loc"], item["type"], item["msg"], kind) for item in error.errors()]
        raise BadRequest("\n".join(lines), param=lines[0].partition(":")[0]) from error


def _kind_of(values: Mapping[str, Any], wanted: type[C] | None) -> type[C]:
    own = next((method for method, kind in METHODS.items() if kind is wanted), "sft")
    named = values.get("method", own)
    if named not in METHODS:
        raise BadRequest(f"method: '{named}' is none of {', '.join(METHODS)}", param="method")
    if wanted is not None and METHODS[named] is not wanted:
        raise BadRequest(f"method: this file is of a {named} job: run it with `{named}`, not `{own}`", param="method")
    return METHODS[named]  # type: ignore[return-value]


def resolve(config: C) -> C:
    """Makes every path absolute and checks that what is read is there. Raises `BadRequest`."""
    inputs = {key: path for key in config.path_fields if (path := getattr(config, key))}
    needs_root = config.output is None or not all(map(os.path.isabs, (config.output, *inputs.values())))
    root = _jobs_root(config) if needs_root else Path(config.root or "/")

    def absolute(text: str) -> str:
        return os.path.normpath(root / text)

    resolved = config.model_copy(
        update={
            "root": str(root) if needs_root else config.root,
            "output": absolute(config.output or config.name),
            **{key: absolute(path) for key, path in inputs.items()},
        }
    )
    _check_inputs(resolved)
    return resolved


def _jobs_root(config: JobConfig) -> Path:
    root = config.root or os.environ.get(ROOT_VARIABLE)
    if submission_id() and not (root and os.path.isabs(root)):
        raise BadRequest(
            "root: this job runs in a copy that Ray deletes, so relative paths need an absolute start: "
            f'set root = "/absolute/path" in the job\'s file, or {ROOT_VARIABLE}',
            param="root",
        )
    return Path(os.path.abspath(root or DEFAULT_ROOT))


def _check_inputs(config: JobConfig) -> None:
    model = Path(config.model)
    if "quantization_config" in _read_model_config(model):
        raise BadRequest(
            f"model: {model} is quantized; name the directory of the base that it was made from", param="model"
        )
    for key in config.path_fields:
        path = getattr(config, key)
        if path and key not in ("model", "parent") and not Path(path).is_file():
            raise BadRequest(f"{key}: no file at {path}", param=key)
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


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise BadRequest(f"--set: {section} of '{key}' is no section", param="set")
    values[last] = value


def _explain(location: tuple[int | str, ...], error: str, message: str, kind: type[Section]) -> str:
    name = ".".join(str(part) for part in location) or ("job" if issubclass(kind, JobConfig) else "export")
    if error != "extra_forbidden":
        return f"{name}: {message.removeprefix('Value error, ')}"
    close = difflib.get_close_matches(name, kind.model_fields, n=1)
    return f"{name}: no such setting" + (f"; did you mean {close[0]}?" if close else "")
