"""Rollout workers without an engine: what they answer is scripted, and tokenized as the learner does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from engines.types import VersionName
from rollout.types import FinishReason, Group, Score, Task, Trajectory, Turn

if TYPE_CHECKING:
    from learners.data.collate import Encoder

ANSWERS = ("yes", "no", "no")
Spoil = Callable[[Group], Group]


class ScriptedWorker:
    """Answers each task at once: `ANSWERS` in turn, of which "yes" is right, spoilt as a test wants it."""

    name = "scripted"

    def __init__(self, encoder: Encoder, spoil: Spoil = lambda group: group) -> None:
        self._encoder = encoder
        self._spoil = spoil
        self.asked: list[VersionName] = []
        self.asked_rows: list[str] = []
        self.asked_to_evaluate: list[VersionName] = []

    async def sample(self, task: Task) -> Group:
        self.asked.append(task.version)
        self.asked_rows.append(task.prompt.id)
        return self._spoil(self._answer(task))

    async def evaluate(self, task: Task) -> Group:
        self.asked_to_evaluate.append(task.version)
        return self._spoil(self._answer(replace(task, num_samples=1)))

    async def revive(self) -> None:
        return

    async def close(self) -> None:
        return

    def _answer(self, task: Task) -> Group:
        turns = [self._turn(task, ANSWERS[number % len(ANSWERS)]) for number in range(task.num_samples)]
        scores = tuple(Score(float(turn.text == "yes"), {"exact_match": float(turn.text == "yes")}) for turn in turns)
        return Group(task.prompt, task.version, tuple(Trajectory((turn,)) for turn in turns), scores)

    def _turn(self, task: Task, answer: str) -> Turn:
        tokenizer = self._encoder._processor.tokenizer
        ids = (*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
        prompt_ids = self._encoder.encode_prompt(task.prompt.messages).prompt_ids
        return Turn(task.prompt.messages, prompt_ids, ids, (-0.7,) * len(ids), answer, FinishReason.STOP)


class SilentWorker(ScriptedWorker):
    """Answers only the first `num_answers` tasks; `on_silence` is called at each of the others."""

    def __init__(self, encoder: Encoder, num_answers: int, on_silence: Callable[[], None] = lambda: None) -> None:
        super().__init__(encoder)
        self._num_answers = num_answers
        self._on_silence = on_silence

    async def sample(self, task: Task) -> Group:
        if len(self.asked) < self._num_answers:
            return await super().sample(task)
        self._on_silence()
        await asyncio.Event().wait()
        raise AssertionError
