"""What a training run leaves in its job directory while it trains: an event a step, and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engines.adapter import write_manifest
from engines.adapter.directory import WEIGHTS_FILE
from learners.checkpoint import TRAINER_STATE, writing_checkpoint
from learners.config import SftConfig
from learners.data.examples import Example
from learners.lora import save_adapter
from learners.manifest import Origin
from learners.progress import StepProgress
from learners.run import Run

if TYPE_CHECKING:
    from peft import PeftModel

    from learners.probe import Probe
    from learners.trainer import StepReport


class Recorder:
    """The trainer's hooks. Keeps the newest step's metrics for manifest and result."""

    def __init__(
        self,
        run: Run[SftConfig],
        *,
        model: PeftModel,
        probe: Probe,
        origin: Origin,
        examples: Sequence[Example],
        progress: StepProgress,
    ) -> None:
        self._run = run
        self._model = model
        self._probe = probe
        self._origin = origin
        self._examples = examples
        self._progress = progress
        self._started_s = time.monotonic() - run.result.metrics.get("train_seconds", 0.0)

    def on_step(self, report: StepReport) -> None:
        metrics = {
            "loss": report.loss,
            "token_accuracy": report.token_accuracy,
            "train_seconds": time.monotonic() - self._started_s,
        }
        self._run.update(step=report.step, metrics=metrics)
        self._run.job.events.write(
            "step",
            f"step {report.step} of {self._run.result.num_steps}: loss {report.loss:.4f}",
            step=report.step,
            loss=report.loss,
            learning_rate=report.learning_rate,
            token_accuracy=report.token_accuracy,
            rows=[self._examples[row].id for row in report.rows],
        )
        self._progress.show(report.step, report.loss)

    @contextmanager
    def on_checkpoint(self, step: int) -> Iterator[Path]:
        """Yields the folder of the trainer's own state; adapter and manifest are written around it."""
        with writing_checkpoint(self._run.job.checkpoints, step) as folder:
            yield folder / TRAINER_STATE
            save_adapter(self._model, folder)
            metrics = {"step": float(step), **self._run.result.metrics}
            manifest = self._origin.manifest(folder / WEIGHTS_FILE, metrics, self._probe.records())
            write_manifest(folder, manifest)
        self._run.save()
        self._run.job.events.write("checkpoint", f"wrote checkpoints/step-{step}", step=step)
