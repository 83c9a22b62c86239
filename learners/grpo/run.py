"""A GRPO job from its configuration to a finished directory: opens data, model, engines and workers around the loop."""

from __future__ import annotations

from pathlib import Path

from engines.adapter import read_base
from learners import quiet
from learners.cancel import CancelRequest
from learners.checkpoint import Checkpoint
from learners.config import GrpoConfig
from learners.data.prompts import parse_prompt
from learners.data.readers import DataSet, read_rows
from learners.events import read_events
from learners.grpo.checkpoints import Checkpoints
from learners.resume import adapter_to_load, resume_point
from learners.rows import judge_rows
from learners.run import Run, run_job
from learners.schedule import Schedule, build_schedule
from learners.status import JobResult
from rollout.environments import load_environment
from rollout.rewards import check_fields, check_rewards
from rollout.types import Prompt


def run_grpo(config: GrpoConfig) -> JobResult:
    """See `run_job`."""
    check_rewards(config.rewards)
    load_environment(config.rollout.environment, config.rollout.environment_options)
    return run_job(config, _run)


def _run(run: Run[GrpoConfig], request: CancelRequest) -> int:
    """Trains until the schedule's end, which it returns, or until the step after which it stopped on purpose."""
    config = run.config
    data = read_rows(Path(config.data), parse_prompt)
    judge_rows(run, data)
    check_fields(config.rewards, data.examples)
    schedule = build_schedule(
        len(data.examples),
        batch_size=config.prompts_per_step,
        epochs=config.epochs,
        max_steps=config.max_steps,
        seed=config.seed,
    )
    newest = resume_point(run, data)
    checkpoints = Checkpoints(run, read_eval_rows(config))
    run.update(num_steps=schedule.num_steps)
    run.save()
    if checkpoints.should_stop or run.result.step >= schedule.num_steps:
        return run.result.step
    return _train(run, request, data, schedule, newest, checkpoints)


def _train(
    run: Run[GrpoConfig],
    request: CancelRequest,
    data: DataSet[Prompt],
    schedule: Schedule,
    newest: Checkpoint | None,
    checkpoints: Checkpoints,
) -> int:
    config = run.config
    quiet.prepare(config.num_threads)
    from transformers import AutoProcessor, set_seed

    from learners.data.collate import Encoder
    from learners.grpo.learner import Learner
    from learners.grpo.loop import train
    from learners.grpo.opening import opened_rollouts
    from learners.grpo.recorder import Recorder
    from learners.lora import load_model
    from learners.progress import StepProgress

    set_seed(config.seed)
    base = read_base(Path(config.model))
    encoder = Encoder(AutoProcessor.from_pretrained(config.model, local_files_only=True))
    model = load_model(config, base, adapter_to_load(config, newest))
    learner = Learner(
        config,
        model,
        encoder,
        base,
        data,
        run_number=count_starts(run.job.events_file),
        num_steps=schedule.num_steps,
    )
    restored = learner.restore(newest) if newest else None
    first_step = newest.step if newest else 0
    with StepProgress(schedule.num_steps, measure="reward") as progress, request.deferred():
        recorder = Recorder(run, progress)
        opening = opened_rollouts(run, data.examples, schedule, base, recorder, first_step, restored)
        with opening as rollouts:
            train(learner, rollouts, recorder, checkpoints, request, range(first_step + 1, schedule.num_steps + 1))
    has_ended = checkpoints.should_stop or not request.is_requested
    return run.result.step if has_ended else schedule.num_steps


def read_eval_rows(config: GrpoConfig) -> tuple[Prompt, ...]:
    """The first `eval_size` good rows of `eval_data`; none without it."""
    if config.eval_data is None:
        return ()
    return read_rows(Path(config.eval_data), parse_prompt).examples[: config.eval_size]


def count_starts(events_file: Path) -> int:
    """How often the job was started, this time included."""
    return sum(event.type == "started" for event in read_events(events_file))
