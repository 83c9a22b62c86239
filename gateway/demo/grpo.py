"""The demo's GRPO: from the SFT adapter, as a guest on the replicas that serve the background users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from engines.errors import TandemError
from gateway.demo.report import GrpoFigures
from gateway.jobs import Job, JobEvent, read_job

PROMPTS = "doubtful"
"""What users still correct after SFT: negated questions most of all."""
NUM_PROMPTS = 512
PROMPT_SEED = 7
NUM_EVAL_PROMPTS = 96
EVAL_SEED = 8
NUM_AVERAGED = 3
"""Steps whose mean reward is the first and the last one."""
JOB_SETTINGS = (
    'method = "grpo"',
    "rank = 16",
    "alpha = 32",
    "learning_rate = 5e-4",
    "prompts_per_step = 32",
    "group_size = 4",
    "max_steps = 12",
    "save_every = 12",
    f"eval_size = {NUM_EVAL_PROMPTS}",
    "max_staleness = 1",
)


def settings_of(base: Path, engine: str, parent: Path, prompts: Path, eval_prompts: Path) -> tuple[str, ...]:
    """The lines of the job's file. By `eval_prompts` the job tells whether a checkpoint is better than its parent.

    On two cores that also serve, any training is felt by users: `users_factor` lets it be so, and the report says how
    much.
    """
    return (
        *JOB_SETTINGS,
        f'model = "{base}"',
        f'data = "{prompts}"',
        f'eval_data = "{eval_prompts}"',
        f'parent = "{parent}"',
        "[[rewards]]",
        'name = "exact_match"',
        "[rollout]",
        f'engine = "{engine}"',
        "max_running = 16",
        "max_new_tokens = 8",
        "users_factor = 100.0",
    )


def figures_of(path: Path) -> GrpoFigures:
    """From the job's events. Raises `TandemError` if it took no step."""
    job = read_job(path)
    events = list(job.events())
    steps = [event for event in events if event.type == "step"]
    if not steps:
        raise TandemError(f"the job in {path} took no step")
    rewards = [float(event.data["reward"]) for event in steps]
    pushes = [event for event in events if event.type == "push"]
    judged = {int(event.data["step"]): float(event.data["reward"]) for event in events if event.type == "evaluation"}
    best_step = max(judged, key=lambda step: judged[step])
    return GrpoFigures(
        steps=len(steps),
        best_step=best_step,
        eval_parent=round(judged[0], 4),
        eval_best=round(judged[best_step], 4),
        reward_first=round(fmean(rewards[:NUM_AVERAGED]), 4),
        reward_last=round(fmean(rewards[-NUM_AVERAGED:]), 4),
        staleness_mean=round(_mean(steps, "staleness_mean"), 3),
        mismatch=round(max(float(event.data["push_mismatch"]) for event in pushes), 5),
        bound_by=_bound_by(job, events),
    )


def _mean(events: Sequence[JobEvent], name: str) -> float:
    return fmean(float(event.data[name]) for event in events)


def _bound_by(job: Job, events: Sequence[JobEvent]) -> str:
    said = [event.message for event in events if event.type == "bound"]
    if not said:
        raise TandemError(f"the job {job.name} did not say what it was bound by")
    return said[-1].partition(":")[0].removeprefix("bound by ")
