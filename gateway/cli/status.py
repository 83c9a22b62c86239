"""`tandem status`: what runs, what each alias names, and whether it can answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gateway.cli.console import ExitCode, print_json, print_table, say
from gateway.cli.options import ConfigOption, JsonOption, UrlOption, client

if TYPE_CHECKING:
    from gateway.client import Alias


def status(url: UrlOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the gateway's health and what its aliases name. Exit 3 if it cannot answer.

    tandem status

    tandem status --url http://127.0.0.1:8000 --json
    """
    with client(url, config) as gateway:
        aliases = gateway.aliases()
        versions = gateway.versions()
        is_ready = gateway.is_ready()
        models = gateway.models()
    if as_json:
        rows = [alias.model_dump(mode="json") for alias in aliases]
        print_json(
            {"url": gateway.url, "ready": is_ready, "aliases": rows, "models": list(models), "versions": len(versions)}
        )
    else:
        say(f"{gateway.url}: {'ready' if is_ready else 'not ready: no engine can answer'}; {len(versions)} versions")
        print_table(("alias", "engine", "live", "previous", "generation"), [_row(alias) for alias in aliases])
    if not is_ready:
        raise typer.Exit(ExitCode.UNHEALTHY)


def _row(alias: Alias) -> tuple[str, ...]:
    return alias.id, alias.engine, alias.live, alias.previous or "-", str(alias.generation)
