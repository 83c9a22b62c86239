"""`tandem versions export`: a version merged into its base, quantized, and written as a model of its own."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engines.errors import BadRequest, NotFound
from engines.types import VersionName
from gateway.cli.children import run_learners
from gateway.cli.console import say
from gateway.cli.options import ConfigOption, JsonOption, SetOption, UrlOption, client, load
from gateway.generation import engine_of

if TYPE_CHECKING:
    from gateway.client import GatewayClient, Version
    from gateway.config import TandemConfig


SCHEMES = "none|fp8|w4a16-rtn|w4a16-gptq|w4a16-awq"
"""`learners.config.Scheme`, which is not imported for the sake of a help text."""


@dataclass(frozen=True, slots=True)
class _Source:
    """What is exported: an adapter's directory, the unquantized base it belongs to, and what it is called."""

    adapter: Path
    base: Path
    name: str
    version: str | None = None
    engine: str = "ENGINE"


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="A version, like vqa@3; or the directory of an adapter that no engine serves as one: DoRA."
        ),
    ],
    scheme: Annotated[str, typer.Option(metavar=SCHEMES, help="How the language linears are stored.")] = "fp8",
    out: Annotated[
        Path | None, typer.Option(help="The directory to write. Default: exports/NAME-SCHEME in data.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="The unquantized base. Default: that of the engine, or of the version's job.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Rows that it is judged on, against the unquantized model.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Rows that GPTQ and AWQ are fitted to.")] = None,
    settings: SetOption = None,
    url: UrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge a version into its base, quantize, load, judge, and write a model directory with its report.

    tandem versions export vqa@3 --scheme fp8 --data held-out.jsonl

    tandem versions export vqa@3 --scheme w4a16-gptq --calibration rows.jsonl --out ./vqa-3-w4

    tandem versions export ./dora --base ./base --scheme none --json
    """
    configured = load(config)
    found = _of_directory(source, base) if Path(source).is_dir() else _of_version(source, base, configured, url, config)
    target = out or configured.run_root / "exports" / f"{found.name}-{scheme}"
    options: dict[str, object] = {
        "model": found.base,
        "adapter": found.adapter,
        "scheme": scheme,
        "out": target.absolute(),
    }
    options |= {"data": data, "calibration": calibration, "version": found.version}
    flags = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    overrides = (f"environments={configured.run_root / 'envs'}", *(settings or ()))
    flags += [word for setting in overrides for word in ("--set", setting)]
    run_learners("export", *flags, *(["--json"] if as_json else []))
    say(f"release it: tandem engines release {found.engine} {target}")


def _of_directory(source: str, base: Path | None) -> _Source:
    if base is None:
        raise BadRequest(f"--base: {source} is a directory, which does not say its base: name that", param="base")
    directory = Path(source).absolute()
    return _Source(directory, base.absolute(), directory.name)


def _of_version(
    source: str, base: Path | None, configured: TandemConfig, url: str | None, config: Path | None
) -> _Source:
    from engines.adapter import base_hash_of

    name = VersionName.parse(source)
    with client(url, config) as gateway:
        row = gateway.version(str(name))
        served = _served_model(row, gateway)
    found = base.absolute() if base else _find_base(row, served, configured)
    if base_hash_of(found) != row.base_hash:
        raise BadRequest(
            f"--base: {row.id} was trained on another base ({row.base_hash[:19]}...) than {found}: name that one",
            param="base",
        )
    return _Source(Path(row.path), found, str(name), str(name), engine_of(row.engine))


def _served_model(row: Version, gateway: GatewayClient) -> Path | None:
    """Of the generation that the version belongs to; None if the gateway keeps no such engine."""
    try:
        generations = gateway.engine(engine_of(row.engine)).generations
    except NotFound:
        return None
    return next((Path(one.model) for one in generations if one.id == row.engine), None)


def _find_base(row: Version, served: Path | None, configured: TandemConfig) -> Path:
    """The model that the version's engine serves, or the one that its job was trained on. Raises `BadRequest`."""
    from engines.profiles import read_config

    candidates = [] if served is None else [served.absolute()]
    if row.job is not None:
        candidates += _models_of_job(configured.jobs.root / row.job)
    for model in candidates:
        if (model / "config.json").is_file() and "quantization_config" not in read_config(model):
            return model
    raise BadRequest(
        f"--base: '{row.engine}' serves a quantized copy, and no job of {row.id} names the unquantized base: name it",
        param="base",
    )


def _models_of_job(job: Path) -> list[Path]:
    try:
        return [Path(str(tomllib.loads((job / "config.toml").read_text("utf-8"))["model"]))]
    except (OSError, KeyError, tomllib.TOMLDecodeError):  # a job from elsewhere, or one that is gone
        return []
