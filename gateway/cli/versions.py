"""`tandem versions`: what was registered, and which of them users get."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engines.types import VersionName
from gateway.cli.console import print_json, print_table, say
from gateway.cli.export import export
from gateway.cli.options import ConfigOption, JsonOption, UrlOption, client

if TYPE_CHECKING:
    from gateway.client import Publish, Version

app = typer.Typer(help="List, register, promote, roll back and export versions of an alias.", no_args_is_help=True)
app.command("export")(export)

AliasArgument = Annotated[str, typer.Argument(help="An alias, like vqa.")]
VersionArgument = Annotated[str, typer.Argument(help="A version, like vqa@3.")]


@app.command("ls")
def ls(
    alias: Annotated[str | None, typer.Option(help="Only those of this alias.")] = None,
    url: UrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List versions, newest last.

    tandem versions ls

    tandem versions ls --alias vqa --json
    """
    with client(url, config) as gateway:
        rows = gateway.versions(alias)
    if as_json:
        print_json(rows)
    else:
        print_table(("version", "state", "job", "metrics"), [_row(row) for row in rows])


@app.command("show")
def show(
    version: VersionArgument, url: UrlOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show all that is known of one version.

    tandem versions show vqa@3

    tandem versions show vqa@3 --json
    """
    with client(url, config) as gateway:
        row = gateway.version(str(VersionName.parse(version)))
    if as_json:
        print_json(row)
    else:
        print_table(("field", "value"), [(key, str(value)) for key, value in row.model_dump(mode="json").items()])


@app.command("register")
def register(
    alias: AliasArgument,
    path: Annotated[Path, typer.Argument(help="An adapter's directory: a job's checkpoint, or plain PEFT output.")],
    url: UrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify an adapter and register it as the alias's next version. Exit 4 if it is refused.

    tandem versions register vqa data/jobs/teal/checkpoints/step-50

    tandem versions register vqa ./adapter --json
    """
    with client(url, config) as gateway:
        row = gateway.register(alias, str(path.absolute()))
    if as_json:
        print_json(row)
    else:
        print(row.id)
    say(f"registered {row.id} ({row.state}). Give it to users: tandem versions promote {row.id}")


@app.command("promote")
def promote(
    version: VersionArgument, url: UrlOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Stage a version on its engine, probe it, and let its alias name it. Exit 4 if the probe refuses it.

    tandem versions promote vqa@3

    tandem versions promote vqa@3 --json
    """
    name = VersionName.parse(version)
    with client(url, config) as gateway:
        _print_publish(gateway.promote(name.alias, str(name)), as_json=as_json)


@app.command("rollback")
def rollback(
    alias: AliasArgument, url: UrlOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Let an alias name its previous version again.

    tandem versions rollback vqa

    tandem versions rollback vqa --json
    """
    with client(url, config) as gateway:
        _print_publish(gateway.rollback(alias), as_json=as_json)


def _row(row: Version) -> tuple[str, ...]:
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in row.metrics.items())
    return row.id, row.state, row.job or "-", metrics or row.reason or "-"


def _print_publish(report: Publish, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        print_table(("step", "seconds"), [(step, f"{seconds:.4f}") for step, seconds in report.steps.items()])
    say(
        f"{report.alias} names {report.version} (was {report.previous or '-'}), generation {report.generation}: "
        f"{report.seconds * 1000:.0f} ms from call to flip; proof: {report.proof}"
    )
