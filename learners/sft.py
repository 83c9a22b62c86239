"""Supervised fine-tuning of a LoRA adapter, from a configuration to a finished job directory."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.adapter import read_base
from learners import quiet
from learners.cancel import CancelRequest
from learners.checkpoint import Checkpoint
from learners.config import SftConfig
from learners.data.examples import Example
from learners.data.readers import DataSet, RejectedRow, read_data
from learners.manifest import Origin
from learners.progress import StepProgress
from learners.resume import adapter_to_load, resume_point
from learners.rows import judge_rows
from learners.run import Run, run_job
from learners.schedule import Schedule, build_schedule
from learners.status import JobResult

if TYPE_CHECKING:
    from learners.data.collate import Encoder

NO_PROBE = "no example has one turn and at most one image: the checkpoints carry no probe, and hashes are their proof"


def run_sft(config: SftConfig) -> JobResult:
    """See `run_job`."""
    return run_job(config, _run)


def _run(run: Run[SftConfig], request: CancelRequest) -> int:
    """Trains until the schedule's end, which it returns, or until the step in which a signal came."""
    config = run.config
    data = _read_data(run)
    quiet.prepare(config.num_threads)
    from transformers import AutoProcessor, set_seed

    from learners.data.collate import Encoder

    set_seed(config.seed)
    processor = AutoProcessor.from_pretrained(config.model, local_files_only=True)
    data = _within_length(run, data, Encoder(processor))
    schedule = _schedule(config, data)
    run.update(num_rows=data.num_rows, num_rejected=len(data.rejected), num_steps=schedule.num_steps)
    newest = resume_point(run, data)
    run.save()
    if newest is None or newest.step < schedule.num_steps:
        _train(run, request, processor, data, schedule, newest)
    return schedule.num_steps


def _train(
    run: Run[SftConfig],
    request: CancelRequest,
    processor: object,
    data: DataSet[Example],
    schedule: Schedule,
    newest: Checkpoint | None,
) -> None:
    from learners.data.collate import Encoder
    from learners.lora import load_model
    from learners.probe import Probe
    from learners.recorder import Recorder
    from learners.trainer import build_trainer, train

    config = run.config
    base = read_base(Path(config.model))
    model = load_model(config, base, adapter_to_load(config, newest))
    encoder = Encoder(processor)
    probe = Probe(model, encoder, data.examples, config.probe_size)
    if not probe.size:
        run.job.events.write("probe", NO_PROBE, level="warning")
    origin = Origin(config, base, data.data_hash)
    with StepProgress(schedule.num_steps) as progress, tempfile.TemporaryDirectory() as scratch:
        recorder = Recorder(run, model=model, probe=probe, origin=origin, examples=data.examples, progress=progress)
        trainer = build_trainer(
            config,
            model=model,
            processor=processor,
            examples=data.examples,
            schedule=schedule,
            hooks=recorder,
            request=request,
            scratch=Path(scratch),
        )
        with request.deferred():
            train(trainer, newest)


def _read_data(run: Run[SftConfig]) -> DataSet[Example]:
    data = read_data(Path(run.config.data))
    judge_rows(run, data)
    return data


def _within_length(run: Run[SftConfig], data: DataSet[Example], encoder: Encoder) -> DataSet[Example]:
    """Moves the examples of rows that are longer than `max_length` to the bad rows."""
    bound = run.config.max_length
    if bound is None:
        return data
    lengths = {example.id: encoder.encode(example).num_tokens for example in data.examples}
    longest: dict[int, int] = {}
    for example in data.examples:
        longest[example.line] = max(longest.get(example.line, 0), lengths[example.id])
    rejected = tuple(
        RejectedRow(line=line, reason=f"{length} tokens, more than max_length, which is {bound}")
        for line, length in longest.items()
        if length > bound
    )
    kept = tuple(example for example in data.examples if longest[example.line] <= bound)
    shorter = replace(data, examples=kept, rejected=(*data.rejected, *rejected))
    judge_rows(run, shorter)
    return shorter


def _schedule(config: SftConfig, data: DataSet[Example]) -> Schedule:
    return build_schedule(
        len(data.examples),
        batch_size=config.batch_size,
        epochs=config.epochs,
        max_steps=config.max_steps,
        seed=config.seed,
    )
