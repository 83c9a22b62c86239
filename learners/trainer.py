"""TRL's trainer, told to keep its state in our checkpoints and its rows in our events.

Imports torch and TRL: only the run of a job imports this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from engines.errors import Refused
from learners.cancel import CancelRequest
from learners.checkpoint import Checkpoint
from learners.config import SftConfig
from learners.data.collate import Encoder, collate
from learners.data.examples import Example
from learners.schedule import Schedule

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import ProcessorMixin, TrainerControl, TrainerState

ROWS = "rows"


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step: its mean loss a token, and the indices of the examples that it consumed."""

    step: int
    loss: float
    learning_rate: float
    token_accuracy: float
    rows: tuple[int, ...]


class Hooks(Protocol):
    """What the trainer calls: after every step, and to write a checkpoint (it fills the folder that it is given)."""

    def on_step(self, report: StepReport) -> None: ...

    def on_checkpoint(self, step: int) -> AbstractContextManager[Path]: ...


def scheduled_rows(schedule: Schedule) -> Dataset:
    """The schedule's indices, in its order. TRL takes a column `images` as the mark of a vision data set."""
    return Dataset.from_dict({ROWS: list(schedule.order), "images": [None] * len(schedule.order)})


class Collator:
    """Encodes the examples of one batch, and keeps their indices with it."""

    def __init__(self, encoder: Encoder, examples: Sequence[Example]) -> None:
        self._encoder = encoder
        self._examples = examples

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [sample[ROWS] for sample in samples]
        batch = collate([self._encoder.encode(self._examples[row]) for row in rows], self._encoder.pad_id)
        return batch | {ROWS: torch.tensor(rows)}


class CancelBetweenSteps(TrainerCallback):  # type: ignore[misc]
    """Ends training with a checkpoint after the step in which a signal came."""

    def __init__(self, request: CancelRequest) -> None:
        self._request = request

    def on_step_end(self, args: TrlConfig, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._request.is_requested:
            control.should_save = control.should_training_stop = True


class JobTrainer(SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` over a schedule. The adapter of a resumed job is in the model before the trainer is made."""

    def __init__(self, *args: Any, hooks: Hooks, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hooks = hooks
        self._consumed: list[int] = []

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self._consumed += inputs.pop(ROWS).tolist()
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        accuracy = self._metrics["train"].get("mean_token_accuracy")
        mean_accuracy = sum(accuracy) / len(accuracy) if accuracy else 0.0
        super().log(logs, start_time)
        if "loss" in logs:
            self._report(float(logs["loss"]), float(logs["learning_rate"]), mean_accuracy)

    def _report(self, loss: float, learning_rate: float, accuracy: float) -> None:
        step = self.state.global_step
        if not math.isfinite(loss):
            raise Refused(f"the loss is {loss} at step {step}: training diverged; lower learning_rate and start anew")
        rows, self._consumed = tuple(self._consumed), []
        self._hooks.on_step(StepReport(step, loss, learning_rate, accuracy, rows))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self._hooks.on_checkpoint(self.state.global_step) as folder:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            self.state.save_to_json(str(folder / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights are in the model already; only the state beside them is read."""


def build_trainer(
    config: SftConfig,
    *,
    model: PeftModel,
    processor: ProcessorMixin,
    examples: Sequence[Example],
    schedule: Schedule,
    hooks: Hooks,
    request: CancelRequest,
    scratch: Path,
) -> JobTrainer:
    """The trainer of `schedule`. It writes nothing of its own accord, neither into `scratch` nor elsewhere."""
    from transformers import PrinterCallback

    trainer = JobTrainer(
        model=model,
        args=_arguments(config, schedule, scratch, on_gpu=model.device.type == "cuda"),
        train_dataset=scheduled_rows(schedule),
        processing_class=processor,
        data_collator=Collator(Encoder(processor), examples),
        callbacks=[CancelBetweenSteps(request)],
        hooks=hooks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(trainer: JobTrainer, checkpoint: Checkpoint | None) -> None:
    """Runs to the schedule's end, or until cancelled."""
    trainer.train(resume_from_checkpoint=str(checkpoint.trainer_state) if checkpoint else None)


def _arguments(config: SftConfig, schedule: Schedule, scratch: Path, *, on_gpu: bool) -> TrlConfig:
    return TrlConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=config.batch_size // config.gradient_accumulation,
        gradient_accumulation_steps=config.gradient_accumulation,
        gradient_checkpointing=config.gradient_checkpointing,
        max_steps=schedule.num_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        max_length=None,
        use_cpu=not on_gpu,
        bf16=on_gpu and config.dtype != "float32",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=config.save_every,
        seed=config.seed,
        disable_tqdm=True,
        report_to=[],
    )
