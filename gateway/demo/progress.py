"""The demo's narration on stderr: a live line a stage on a terminal, plain lines elsewhere. Times every stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

_DESCRIPTION_WIDTH = 38
_OTHER_WIDTH = _DESCRIPTION_WIDTH + 17  # spinner, time, percentage and the gaps between them


class StageProgress:
    """Use as a context manager; `seconds` holds what each ended stage took, `failed_stage` which one raised first."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        note_width = max(10, self._console.width - _OTHER_WIDTH)
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]*[/]"),
            TextColumn("{task.description}", table_column=Column(width=_DESCRIPTION_WIDTH, no_wrap=True)),
            TimeElapsedColumn(table_column=Column(width=7)),
            TextColumn("{task.percentage:>3.0f}%", table_column=Column(width=4)),
            TextColumn(
                "[dim]{task.fields[note]}", table_column=Column(width=note_width, no_wrap=True, overflow="ellipsis")
            ),
            console=self._console,
            expand=False,
        )
        self.seconds: dict[str, float] = {}
        self.failed_stage = ""

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
        if not self._console.is_terminal:
            self._console.print(f"{description} ...", highlight=False)
        stage = Stage(self._bars, self._bars.add_task(description, total=num_items, note=""))
        start_s = time.monotonic()
        try:
            yield stage
        except BaseException:
            self.failed_stage = self.failed_stage or name
            raise
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
        self._bars.update(self._task, note=text.strip())

    def note(self, text: str) -> None:
        """The stage's result: stays beside it."""
        self.text = text
        self._bars.update(self._task, note=text)

    def finish(self, num_items: int) -> None:
        self._bars.update(self._task, completed=num_items)
