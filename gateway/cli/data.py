"""`tandem data`: from corrections to a file of training rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.children import run_learners
from gateway.cli.console import print_json, say
from gateway.cli.options import ConfigOption, JsonOption, SetOption, load

app = typer.Typer(help="Check data sets, and build them from feedback.", no_args_is_help=True)


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="JSONL or Parquet.")],
    as_json: JsonOption = False,
) -> None:
    """Read a data set as a learner would, and name every row that it could not use.

    tandem data check corrections.jsonl

    tandem data check corrections.jsonl --json
    """
    run_learners("data", "check", str(file), *(["--json"] if as_json else []))


@app.command("build")
def build(
    out: Annotated[Path, typer.Option("--out", "-o", help="The JSONL to write; images go into a folder beside it.")],
    alias: Annotated[str | None, typer.Option(help="Only answers to this alias.")] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the corrections that users sent as training rows. The newest correction of an answer wins.

    tandem data build --out corrections.jsonl

    tandem data build --alias vqa --out data/sets/vqa.jsonl --json
    """
    from gateway.datasets import build_corrections

    report = build_corrections(load(config, settings), out, alias)
    if as_json:
        print_json(report)
    else:
        print(report.path)
    say(
        f"{report.rows} rows, {report.images} images; {report.superseded} older corrections, {report.left_out} left out"
        + "".join(f"\n  left out {count}: {reason}" for reason, count in report.reasons.items())
    )
