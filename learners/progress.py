"""The progress of a run, on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

NUM_PLAIN_LINES = 10


class StepProgress:
    """Shows steps of `num_steps`. Use as a context manager."""

    def __init__(self, num_steps: int, console: Console | None = None, measure: str = "loss") -> None:
        self._num_steps = num_steps
        self._console = console or Console(stderr=True)
        self._measure = measure
        self._bar = _build_bar(self._console, measure)
        self._task = self._bar.add_task("training", total=num_steps, value="-")

    def __enter__(self) -> StepProgress:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def show(self, step: int, value: float) -> None:
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, value=f"{value:.4f}")
        elif step % max(1, self._num_steps // NUM_PLAIN_LINES) == 0 or step == self._num_steps:
            self._console.print(f"step {step}/{self._num_steps} {self._measure} {value:.4f}", highlight=False)


def _build_bar(console: Console, measure: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(measure + " {task.fields[value]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
