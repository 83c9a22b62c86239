"""Greedy answers of the newest version to rows that are never trained on, scored by the job's own rewards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from engines.errors import TandemError, Unavailable
from engines.types import VersionName
from rollout.types import Group, Prompt, Score, Target, Task
from rollout.worker import Worker

CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean reward and the means of its parts over the `num_scored` rows that were answered and scored."""

    reward: float
    parts: Mapping[str, float]
    num_scored: int
    num_asked: int


class Examination:
    """One evaluation: the rows to ask, and the scores so far."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._num_asked = len(prompts)
        self._scores: list[Score] = []
        self.left = tuple(prompts)
        """Not asked yet, or lost while something was away."""
        self.reason = ""
        """Of the last loss."""

    async def ask(
        self,
        workers: Sequence[Worker],
        version: VersionName,
        targets: tuple[Target, ...],
        *,
        num_at_once: int,
        timeout_s: float,
    ) -> None:
        """Asks what is left, once. Rows without an answer in time stay left."""
        places = asyncio.Semaphore(num_at_once)
        deadline_s = asyncio.get_running_loop().time() + timeout_s

        async def one(number: int, prompt: Prompt) -> bool:
            try:
                async with asyncio.timeout_at(deadline_s), places:
                    return await self._ask_one(workers[number % len(workers)], Task(prompt, version, targets, 1))
            except TimeoutError:
                self.reason = "no answer until the evaluation's deadline"
                return False

        are_done = await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(self.left)))
        self.left = tuple(prompt for prompt, is_done in zip(self.left, are_done, strict=True) if not is_done)

    def result(self) -> Evaluation:
        """Raises `Unavailable` if not one row could be scored."""
        scores = self._scores
        if not scores:
            raise Unavailable(f"no row of eval_data could be scored; the last: {self.reason}")
        names = list(dict.fromkeys(name for score in scores for name in score.parts))
        parts = {name: fmean(score.parts[name] for score in scores if name in score.parts) for name in names}
        return Evaluation(fmean(score.total for score in scores), parts, len(scores), self._num_asked)

    async def _ask_one(self, worker: Worker, task: Task) -> bool:
        """Whether the row need not be asked again."""
        try:
            await worker.revive()
            group = await worker.evaluate(task)
        except TandemError as error:
            self.reason = error.message
            return not error.retryable
        self._take(group)
        return not group.num_transient

    def _take(self, group: Group) -> None:
        self._scores += group.scores
        self.reason = group.losses[-1] if group.losses else self.reason
