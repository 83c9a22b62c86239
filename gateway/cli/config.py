"""`tandem config`: what is set, whether it holds, and what can be set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import print_json, say
from gateway.cli.options import ConfigOption, JsonOption, SetOption, load

app = typer.Typer(help="Show, check and describe the configuration.", no_args_is_help=True)


@app.command("show")
def show(config: ConfigOption = None, settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Print the configuration as resolved from command line, environment, file and defaults.

    tandem config show -c deploy/examples/demo.toml

    tandem config show --set gateway.port=8100 --json
    """
    document = load(config, settings).model_dump(mode="json")
    if as_json:
        print_json(document)
    else:
        for line in _lines(document, ""):
            print(line)


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A configuration file.")],
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration file. Exit 2 naming every bad key.

    tandem config check deploy/examples/demo.toml

    tandem config check tandem.toml --json
    """
    resolved = load(file, settings)
    if as_json:
        print_json({"file": str(file), "engines": sorted(resolved.engines), "models": sorted(resolved.models)})
    say(f"{file}: {len(resolved.engines)} engines, {len(resolved.models)} models; nothing to object to")


@app.command("schema")
def schema() -> None:
    """Print the configuration's JSON schema, with what each key means.

    tandem config schema

    tandem config schema > tandem.schema.json
    """
    from gateway.config import TandemConfig

    print_json(TandemConfig.model_json_schema())


def _lines(value: object, path: str) -> list[str]:
    if isinstance(value, dict) and value:
        return [line for key, inner in value.items() for line in _lines(inner, f"{path}.{key}" if path else str(key))]
    return [f"{path} = {value!r}"]
