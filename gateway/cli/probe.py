"""`tandem doctor MODEL`: what works with a model on this machine, one line for each thing that one wants of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from engines.config import EngineConfig
from engines.errors import BadRequest
from gateway.cli.console import ExitCode, print_json, print_rich, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engines.schemes import MachineKind
    from gateway.config import TandemConfig
    from gateway.probing.examine import Examination

_STYLES = {"works": "green", "unknown": "yellow", "fails": "bold red"}


def probe(model: str, config: TandemConfig, *, as_json: bool) -> None:
    """Raises `BadRequest` for what is no model; `typer.Exit` with 3 if something fails."""
    from gateway.probing.verdict import Outcome

    found = asyncio.run(_examine(_section_of(model, config)))
    if as_json:
        print_json({"verdicts": _documents(found), "profile_row": found.profile_row})
    else:
        print_rich(_table(found))
        if found.profile_row:
            print(f"The row to add to engines/profiles.py:\n\n{found.profile_row}")
    if any(verdict.outcome is Outcome.FAILS for verdict in found.verdicts):
        raise typer.Exit(ExitCode.UNHEALTHY)


async def _examine(engine: EngineConfig) -> Examination:
    from gateway.probing.examine import examine

    return await examine(engine, await _machine_of(engine), say)


def _section_of(model: str, config: TandemConfig) -> EngineConfig:
    """The section that names this model, or one of defaults."""
    path = _directory_of(model)
    sections = (engine for engine in config.engines.values() if engine.model_path() == path)
    named = next(sections, None)
    return named or EngineConfig(model=str(path), max_images=1)


def _directory_of(model: str) -> Path:
    from gateway.hub import explain_missing, find_snapshot

    path = Path(model).expanduser()
    found = path if path.is_dir() else find_snapshot(model)
    if found is None:
        raise BadRequest(explain_missing(model), param="model")
    return found.absolute()


async def _machine_of(engine: EngineConfig) -> MachineKind:
    """Of a vLLM engine, by whether its interpreter has the CPU build; raises `EngineDown` if it has none."""
    import sys

    from engines.schemes import here
    from engines.vllm import build_of, machine_of

    if engine.kind != "vllm":
        return await asyncio.to_thread(here)
    return await machine_of(await build_of(engine.python or sys.executable))


def _documents(found: Examination) -> list[dict[str, str]]:
    return [
        {"subject": verdict.subject, "outcome": verdict.outcome.value, "found": verdict.found}
        for verdict in found.verdicts
    ]


def _table(found: Examination) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("", "of", "found", box=box.SIMPLE_HEAD, pad_edge=False)
    for verdict in found.verdicts:
        outcome = verdict.outcome.value
        table.add_row(Text(outcome, style=_STYLES[outcome]), verdict.subject, Text(verdict.found))
    return table
