"""The demo's narration on stderr: a live line a stage on a terminal, plain lines elsewhere. Times every stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class StageProgress:
    """Use as a context manager; `seconds` holds what each ended stage took."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]*[/]"),
            TextColumn("{task.description:<44}"),
            TimeElapsedColumn(),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self._console,
        )
        self.seconds: dict[str, float] = {}
        self.current = "set-up"

    def __enter__(self) -> StageProgress:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    @contextmanager
    def stage(self, name: str, description: str, num_items: int = 1) -> Iterator[Stage]:
        self.current = name
        if not self._console.is_terminal:
            self._console.print(f"{description} ...", highlight=False)
        stage = Stage(self._bars, self._bars.add_task(description, total=num_items, note=""))
        start_s = time.monotonic()
        yield stage
        self.seconds[name] = round(time.monotonic() - start_s, 2)
        stage.finish(num_items)
        if not self._console.is_terminal:
            self._console.print(f"  done in {self.seconds[name]:.1f} s {stage.text}".rstrip(), highlight=False)


class Stage:
    """One stage under way."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars = bars
        self._task = task
        self.text = ""

    def advance(self) -> None:
        self._bars.advance(self._task)

    def show(self, text: str) -> None:
        """A remark that the next one replaces, as a job's steps do."""
        self._bars.update(self._task, note=text[-70:])

    def note(self, text: str) -> None:
        """The stage's result: stays beside it."""
        self.text = text
        self._bars.update(self._task, note=text)

    def finish(self, num_items: int) -> None:
        self._bars.update(self._task, completed=num_items)
