"""`tandem demo`: the whole loop on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import print_json
from gateway.cli.options import JsonOption
from gateway.demo.base import DemoBase, DemoFamily


def demo(
    report: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("demo-report.json"),
    picture: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("demo.png"),
    family: Annotated[DemoFamily, typer.Option(help="Of which family the small model is.")] = DemoFamily.QWEN3_VL,
    unquantized: Annotated[bool, typer.Option("--unquantized", help="Serve the base as it is, not in FP8.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve, ask, correct, train, swap, roll back: the whole loop on real parts, in minutes.

    tandem demo

    tandem demo --family internvl

    tandem demo --unquantized --keep --json
    """
    from gateway.demo.stages import run_demo

    result = run_demo(DemoBase(family, not unquantized), report, picture, keep=keep)
    if as_json:
        print_json(result)
