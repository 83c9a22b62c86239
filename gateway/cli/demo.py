"""`tandem demo`: the whole loop on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import print_json
from gateway.cli.options import JsonOption


def demo(
    report: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("demo-report.json"),
    picture: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("demo.png"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve, ask, correct, train, swap, roll back: the whole loop on real parts, in minutes.

    tandem demo

    tandem demo --keep --json
    """
    from gateway.demo.stages import run_demo

    result = run_demo(report, picture, keep=keep)
    if as_json:
        print_json(result)
