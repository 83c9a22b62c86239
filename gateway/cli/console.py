"""What the command line prints: data on stdout, narration and errors on stderr, and what the exit codes mean."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from engines.errors import BadRequest, DeadlineExceeded, Refused, TandemError, Unavailable

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

_WIDTH_WHEN_PIPED = 200


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    UNHEALTHY = 3
    REFUSED = 4


_CODES: tuple[tuple[type[TandemError], ExitCode], ...] = (
    (Refused, ExitCode.REFUSED),
    (Unavailable, ExitCode.UNHEALTHY),
    (DeadlineExceeded, ExitCode.UNHEALTHY),
    (BadRequest, ExitCode.USAGE),
)


def exit_code_of(error: TandemError) -> ExitCode:
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)


def say(text: str) -> None:
    """Narration: never on stdout, so that a pipe gets data only."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: BaseModel | Mapping[str, object] | Sequence[object]) -> None:
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def print_rich(value: RenderableType) -> None:
    """A table or text on stdout; a pipe gets it uncut and without colours."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _WIDTH_WHEN_PIPED, highlight=False).print(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    from rich import box
    from rich.table import Table

    table = Table(*columns, title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    print_rich(table)


def _plain(value: object) -> object:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
