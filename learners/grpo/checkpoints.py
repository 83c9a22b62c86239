"""Checkpoints of a GRPO run, each with the reward that says which is the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engines.adapter import read_manifest
from learners.checkpoint import list_checkpoints, writing_checkpoint
from learners.config import GrpoConfig
from learners.run import Run
from rollout.types import Prompt

if TYPE_CHECKING:
    from learners.grpo.learner import Learner
    from learners.grpo.recorder import Recorder
    from learners.grpo.rollouts import Rollouts

EVAL_REWARD = "eval_reward"
BEST_REWARD = "best_reward"


class Checkpoints:
    """`eval_rows`: what every checkpoint is asked; without them the rewards of training are what it is judged by.

    A resumed run knows the rewards from the checkpoints themselves: `result.json` may be of before the newest one.
    """

    def __init__(self, run: Run[GrpoConfig], eval_rows: Sequence[Prompt]) -> None:
        self._run = run
        self._eval_rows = tuple(eval_rows)
        self._best_reward = float("-inf")
        self._has_any = False
        self._num_worse = 0
        self.newest_step = run.result.step
        run.best_checkpoint = None
        for checkpoint in list_checkpoints(run.job.checkpoints):
            self._count(checkpoint.step, read_manifest(checkpoint.path).metrics[EVAL_REWARD])

    @property
    def should_stop(self) -> bool:
        """Whether as many evaluations in a row as are configured were no better than the best one."""
        patience = self._run.config.early_stop_evals
        return patience is not None and self._num_worse >= patience

    def begin(self, learner: Learner, rollouts: Rollouts, recorder: Recorder) -> None:
        """What the run begins with, as `step-0`, where it can be judged: the best one until another is better."""
        if self._eval_rows and not self._has_any:
            self.write(0, learner, rollouts, recorder)

    def is_due(self, step: int) -> bool:
        return step % self._run.config.save_every == 0

    def write(self, step: int, learner: Learner, rollouts: Rollouts, recorder: Recorder) -> None:
        rollouts.settle()
        reward = self._judge(step, rollouts, recorder)
        best_reward = max(reward, self._best_reward)
        metrics = {**self._run.result.metrics, EVAL_REWARD: reward, BEST_REWARD: best_reward}
        with writing_checkpoint(self._run.job.checkpoints, step) as folder:
            learner.save(folder, step, metrics, rollouts.snapshot())
        is_best = self._count(step, reward)
        self.newest_step = step
        self._run.update(metrics=metrics)
        self._run.save()
        recorder.on_checkpoint(step, reward, is_best=is_best)

    def _count(self, step: int, reward: float) -> bool:
        """Whether the checkpoint, which is there, is the best one so far."""
        self._has_any = True
        is_best = reward > self._best_reward
        self._num_worse = 0 if is_best else self._num_worse + 1
        if is_best:
            self._best_reward = reward
            self._run.best_checkpoint = f"checkpoints/step-{step}"
        return is_best

    def _judge(self, step: int, rollouts: Rollouts, recorder: Recorder) -> float:
        if not self._eval_rows:
            return recorder.take_mean_reward()
        evaluation = rollouts.evaluate(step, self._eval_rows)
        recorder.on_evaluation(step, evaluation)
        return evaluation.reward
