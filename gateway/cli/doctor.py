"""`tandem doctor`: what is wrong here, and the one command that mends each of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from engines.errors import ConfigError
from gateway.cli.console import ExitCode, print_json, print_rich, say
from gateway.cli.options import DEFAULT_FILE, ConfigOption, JsonOption, SetOption, load
from gateway.cli.traces import pid_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import RenderableType

    from gateway.doctor import Checked, Finding

_STYLES = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}


ModelArgument = Annotated[
    str | None,
    typer.Argument(help="A model's directory or hub id: probe it instead. Default: check this installation."),
]


def doctor(
    model: ModelArgument = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check everything, running or not, and say how to mend what is wrong. Exit 3 if a check fails.

    With MODEL: load it with transformers, serve it, compare the two, put a random adapter on it, and say what works.
    The engine's section of the configuration counts if one names this model.

    tandem doctor

    tandem doctor -c deploy/examples/fake.toml --json

    tandem doctor ./some-model
    """
    if model is not None:
        from gateway.cli.probe import probe

        return probe(model, load(config, settings), as_json=as_json)
    from gateway.doctor import is_well

    found = _examine(config, settings)
    if as_json:
        print_json([{"check": checked.check, **_document(checked.finding)} for checked in found])
    else:
        print_rich(_table(found))
        say(_summary(found))
    if not is_well(found):
        raise typer.Exit(ExitCode.UNHEALTHY)


def _examine(config: Path | None, settings: list[str] | None) -> Sequence[Checked]:
    from gateway.doctor import Checked, diagnose, survey
    from gateway.doctor.finding import fail, ok

    file = config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    try:
        resolved = load(config, settings)
    except ConfigError as error:
        # Without a configuration there is nothing to look at.
        shown = f" {file}" if file else ""
        return [Checked("configuration", fail(error.message, f"tandem config check{shown}"))]
    context = survey(resolved, config, pid_file(resolved).holder())
    read = f"{file or 'defaults only'}: {len(resolved.engines)} engines, {len(resolved.models)} aliases"
    return [Checked("configuration", ok(read)), *diagnose(context)]


def _document(finding: Finding) -> dict[str, str]:
    return {"level": finding.level.value, "found": finding.found, "mend": finding.mend}


def _table(found: Sequence[Checked]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("", "check", "found", box=box.SIMPLE_HEAD, pad_edge=False)
    for checked in found:
        finding = checked.finding
        words = Text(finding.found)
        if finding.mend:
            words.append(f"\nmend: {finding.mend}", style="bold")
        table.add_row(Text(finding.level.value, style=_STYLES[finding.level.value]), checked.check, words)
    return table


def _summary(found: Sequence[Checked]) -> str:
    levels = [checked.finding.level.value for checked in found]
    return ", ".join(f"{levels.count(level)} {level}" for level in _STYLES)
