"""The configuration tree: `TandemConfig` composes the sections, `load_config` reads them.

Precedence: command line > `TANDEM_*` environment (`TANDEM_GATEWAY__PORT`) > TOML file > default. Unknown keys are
errors. Relative paths are taken from the current directory and are absolute once resolved.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource

from engines.config import EngineConfig, Section
from engines.errors import ConfigError
from gateway.generation import engine_of
from gateway.hub import explain_missing, find_snapshot

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
MAX_ENGINE_CHARS = 50
"""So that a name of its generations, `NAME.g123456789`, is a name too."""
_ENV_PREFIX = "TANDEM_"


class ModelConfig(Section):
    """What clients put into `model`: an alias over versions."""

    engine: str
    """The engine whose base and adapters this alias names."""


class GatewayConfig(Section):
    """Where the gateway listens, its bounds and its deadlines."""

    host: str = "127.0.0.1"
    """A loopback address: there are no keys."""
    port: int = Field(8000, ge=1, le=65535)
    """The port on `host`."""
    max_body_bytes: int = Field(32 * 2**20, ge=1024)
    """The largest request body."""
    max_image_bytes: int = Field(10 * 2**20, ge=64)
    """The largest image, decoded from base64."""
    max_image_pixels: int = Field(16_000_000, ge=16)
    """Width times height of one image."""
    max_images: int = Field(8, ge=0)
    """Images in one request."""
    min_image_side: int = Field(4, ge=1)
    """The shortest side, in pixels."""
    max_image_side: int = Field(8192, ge=4)
    """The longest side, in pixels."""
    max_text_chars: int = Field(500_000, ge=1)
    """Characters of text in one request, all messages together."""
    body_timeout_s: float = Field(30.0, gt=0)
    """How long a client may take to send its body."""
    connect_timeout_s: float = Field(5.0, gt=0)
    """How long an engine may take to accept a connection."""
    request_timeout_s: float = Field(600.0, gt=0)
    """How long one completion may take in all."""
    first_token_timeout_s: float = Field(300.0, gt=0)
    """How long a streamed answer may take to begin, its place in the engine's queue included."""
    gap_timeout_s: float = Field(120.0, gt=0)
    """The longest silence within a streamed answer."""
    write_timeout_s: float = Field(60.0, gt=0)
    """How long a client may read nothing of what waits for it before its connection is closed."""
    hang_timeout_s: float = Field(60.0, gt=0)
    """How long an engine may run without answering before it is started anew."""
    drain_timeout_s: float = Field(30.0, ge=0)
    """After SIGTERM: how long completions under way may go on."""
    feedback_wait_s: float = Field(10.0, ge=0)
    """How long feedback waits for the row of a completion that has not ended yet."""
    max_queued_records: int = Field(2048, ge=1)
    """Completions that wait to be written; what exceeds it is dropped and counted."""
    max_queued_bytes: int = Field(256 * 2**20, ge=1024)
    """Bytes of answers and images that wait to be written."""

    @property
    def url(self) -> str:
        """Where clients find the gateway, without `/v1`."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    @field_validator("host")
    @classmethod
    def _check_loopback(cls, host: str) -> str:
        if not _is_loopback(host):
            raise ValueError(
                f"'{host}' is not loopback, and no key is configured; use 127.0.0.1 behind a proxy that authenticates"
            )
        return host


class StoreConfig(Section):
    """Where rows and images are kept."""

    url: str
    """An SQLAlchemy URL; default `sqlite:///DATA/tandem.db`."""
    media: str
    """An fsspec URL; default `file://DATA/media`."""

    @field_validator("url")
    @classmethod
    def _resolve_url(cls, url: str) -> str:
        return _absolute(url, "sqlite:///")

    @field_validator("media")
    @classmethod
    def _resolve_media(cls, url: str) -> str:
        return _absolute(url, "file://")


class JobsConfig(Section):
    """Where training jobs keep their directories."""

    root: Path
    """Default `DATA/jobs`."""

    @field_validator("root")
    @classmethod
    def _resolve(cls, root: Path) -> Path:
        return root.expanduser().absolute()


class RayConfig(Section):
    """The Ray cluster that places and supervises engines."""

    address: str = "auto"
    """`auto`, `host:port`, or empty: start a daemon of our own, which `tandem stop` ends."""


class LearnConfig(Section):
    """When versions are trained and promoted."""

    mode: Literal["manual"] = "manual"
    """`manual`: somebody calls `tandem train` and `tandem versions promote`."""


class TandemConfig(Section):
    """The whole tree."""

    data: Path = Field(Path("data"), validate_default=True)
    """The data root: registry, logs, and the defaults of `store` and `jobs` lie under it."""
    engines: dict[str, EngineConfig] = Field(default_factory=dict)
    """One base model each; the bare base of `engines.small` is the version `small@0`."""
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    """The aliases that clients call."""
    gateway: GatewayConfig = Field(default_factory=GatewayConfig)
    """The HTTP side."""
    store: StoreConfig = Field(default_factory=dict, validate_default=True)
    """Rows and images."""
    jobs: JobsConfig = Field(default_factory=dict, validate_default=True)
    """Training jobs."""
    ray: RayConfig = Field(default_factory=RayConfig)
    """The cluster."""
    learn: LearnConfig = Field(default_factory=LearnConfig)
    """Learning."""

    @property
    def registry_root(self) -> Path:
        """Where the files of registered versions lie."""
        return self.data / "registry"

    @property
    def run_root(self) -> Path:
        """What says which processes of ours run, and where."""
        return self.data / "run"

    @property
    def log_root(self) -> Path:
        """Where engines and the gateway write their logs."""
        return self.data / "logs"

    @field_validator("data")
    @classmethod
    def _resolve_data(cls, data: Path) -> Path:
        return data.expanduser().absolute()

    @model_validator(mode="before")
    @classmethod
    def _derive_from_data(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or not isinstance(raw.get("data", ""), (str, Path)):
            return raw
        root = Path(raw.get("data", "data")).expanduser().absolute()
        store = {"url": f"sqlite:///{root}/tandem.db", "media": f"file://{root}/media"}
        return {
            **raw,
            "store": _under(raw.get("store"), store),
            "jobs": _under(raw.get("jobs"), {"root": root / "jobs"}),
        }

    @field_validator("engines")
    @classmethod
    def _resolve_engines(cls, engines: dict[str, EngineConfig]) -> dict[str, EngineConfig]:
        return {name: _resolve_engine(engine) for name, engine in engines.items()}

    @model_validator(mode="after")
    def _check_names(self) -> TandemConfig:
        for name in (*self.engines, *self.models):
            if not _NAME.match(name):
                raise ValueError(f"'{name}' is not a name: letters, digits, '.', '_' and '-', at most 63")
            if engine_of(name) != name:
                raise ValueError(f"'{name}': names that end like this are those of released models; choose another")
        for name in self.engines:
            if len(name) > MAX_ENGINE_CHARS:
                raise ValueError(
                    f"engines.{name}: an engine's name has at most {MAX_ENGINE_CHARS} characters, since released "
                    f"models are called NAME.gN; this one has {len(name)}"
                )
        for alias, model in self.models.items():
            if alias in self.engines:
                raise ValueError(
                    f"models.{alias}: an engine has this name, and '{alias}@0' would mean two things; rename one"
                )
            if model.engine not in self.engines:
                known = ", ".join(self.engines) or "none"
                raise ValueError(f"models.{alias}.engine: no engine '{model.engine}'; configured: {known}")
        return self

    @model_validator(mode="after")
    def _check_engines(self) -> TandemConfig:
        for name, engine in self.engines.items():
            if engine.kind == "remote":
                continue
            # A fake engine takes any model.
            if engine.kind != "fake" and not Path(engine.model).is_dir():
                raise ValueError(f"engines.{name}.model: {explain_missing(engine.model)}")
            num_aliases = sum(model.engine == name for model in self.models.values())
            num_slots = 2 * num_aliases + 1 + engine.reserved_for_rollout
            if engine.max_loras < num_slots:
                raise ValueError(
                    f"engines.{name}.max_loras: {num_aliases} aliases need {num_slots} slots, a live and a previous "
                    f"version each, one to stage the next in, and {engine.reserved_for_rollout} reserved for "
                    f"rollouts; it is {engine.max_loras}"
                )
        return self


class _EnvironmentNames(BaseSettings, TandemConfig):  # type: ignore[misc]  # only its fields are read
    """Only names the fields that the environment may set."""


def load_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> TandemConfig:
    """Reads and checks the tree; `overrides` is nested like the file. Raises `ConfigError`, one problem a line."""
    layers = (_read_file(path) if path else {}, _read_environment(), dict(overrides or {}))
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    try:
        return TandemConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; pass the path of a TOML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__}); pass a readable TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _read_environment() -> dict[str, Any]:
    source = EnvSettingsSource(_EnvironmentNames, env_prefix=_ENV_PREFIX, env_nested_delimiter="__")
    _refuse_unknown_variables()
    values = source()
    return {key: value for key, value in values.items() if value != {}}


def _refuse_unknown_variables() -> None:
    # Only names with a nested key are configuration: TANDEM_HOME or the like may belong to something else.
    for variable in os.environ:
        section, nested, _ = variable.removeprefix(_ENV_PREFIX).lower().partition("__")
        if variable.startswith(_ENV_PREFIX) and nested and section not in TandemConfig.model_fields:
            raise ConfigError(f"{variable}: no section '{section}'{_did_you_mean(section, TandemConfig.model_fields)}")


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _explain(error: ValidationError) -> list[str]:
    return [_explain_one(problem) for problem in error.errors(include_url=False, include_context=False)]


def _explain_one(problem: Any) -> str:
    location = problem["loc"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not location:
        return message
    if problem["type"] == "extra_forbidden":
        message = "unknown key" + _did_you_mean(str(location[-1]), _keys_at(location[:-1]))
    return f"{'.'.join(str(part) for part in location)}: {message}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    kind: Any = TandemConfig
    for part in location:
        if isinstance(kind, type) and issubclass(kind, Section):
            kind = kind.model_fields[str(part)].annotation
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, Section) else []


def _did_you_mean(key: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _under(given: Any, defaults: dict[str, Any]) -> Any:
    return given if given is not None and not isinstance(given, Mapping) else {**defaults, **(given or {})}


def _absolute(url: str, scheme: str) -> str:
    path = url.removeprefix(scheme)
    return f"{scheme}{Path(path).expanduser().absolute()}" if url.startswith(scheme) and path else url


def _resolve_engine(engine: EngineConfig) -> EngineConfig:
    if engine.kind == "remote":
        return engine  # its model is a name, not a place
    path = Path(engine.model).expanduser()
    found = path if path.exists() or engine.kind == "fake" else find_snapshot(engine.model)
    return engine.model_copy(update={"model": str(found.absolute())}) if found and found.exists() else engine
