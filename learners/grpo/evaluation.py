"""Greedy answers of the newest version to rows that are never trained on, scored by the job's own rewards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from engines.errors import TandemError, Unavailable
from engines.types import VersionName
from rollout.types import Group, Prompt, Target, Task
from rollout.worker import Worker

CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean reward and the means of its parts over the `num_scored` rows that were answered and scored."""

    reward: float
    parts: Mapping[str, float]
    num_scored: int
    num_asked: int


async def evaluate(
    workers: Sequence[Worker], prompts: Sequence[Prompt], version: VersionName, targets: tuple[Target, ...]
) -> Evaluation:
    """Raises `Unavailable` if not one row could be scored."""
    places = asyncio.Semaphore(CONCURRENCY)

    async def ask(number: int, prompt: Prompt) -> Group | TandemError:
        task = Task(prompt, version, targets, num_samples=1)
        async with places:
            try:
                return await workers[number % len(workers)].evaluate(task)
            except TandemError as error:
                return error

    answers = await asyncio.gather(*(ask(number, prompt) for number, prompt in enumerate(prompts)))
    scores = [score for group in answers if isinstance(group, Group) for score in group.scores]
    if not scores:
        reasons = [str(answer) for answer in answers if isinstance(answer, TandemError)]
        raise Unavailable(f"no row of eval_data could be scored: {reasons[0] if reasons else 'the rewards failed'}")
    names = list(dict.fromkeys(name for score in scores for name in score.parts))
    parts = {name: fmean(score.parts[name] for score in scores if name in score.parts) for name in names}
    return Evaluation(fmean(score.total for score in scores), parts, len(scores), len(prompts))
