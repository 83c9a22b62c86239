"""What a GRPO run leaves in its job directory while it trains: an event a step, and checkpoints with their rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from learners.config import GrpoConfig
from learners.grpo.delivery import Delivered
from learners.grpo.evaluation import Evaluation
from learners.grpo.policy import StepTerms
from learners.grpo.report import SampleFigures, TimeFigures, bound_by
from learners.progress import StepProgress
from learners.run import Run

WINDOW = 10


class Recorder:
    """Events, progress, and which checkpoint is the best one."""

    def __init__(self, run: Run[GrpoConfig], progress: StepProgress) -> None:
        self._run = run
        self._progress = progress
        self._times: list[TimeFigures] = []
        self._rewards: list[float] = []

    def on_step(
        self,
        step: int,
        samples: SampleFigures,
        terms: StepTerms,
        times: TimeFigures,
        rows: Sequence[str],
        dropped: Sequence[str],
        sync_s: float,
    ) -> None:
        self._times.append(times)
        self._rewards.append(samples.reward)
        figures = asdict(samples)
        num_samples = figures.pop("num_samples")
        numbers = _measured(asdict(terms))
        skipped = numbers.pop("skipped")
        numbers.pop("num_tokens", None)  # of the step; that of an answer says more
        metrics = _measured({**self._run.result.metrics, "reward": samples.reward, "kl": terms.kl})
        self._run.update(step=step, metrics=metrics)
        self._run.job.events.write(
            "step",
            f"step {step} of {self._run.result.num_steps}: reward {samples.reward:.3f}, "
            f"staleness {samples.staleness_mean:.1f}",
            step=step,
            **figures,
            **numbers,
            learner_idle=times.learner_idle,
            engine_idle=times.engine_idle,
            step_s=times.step_s,
            samples_per_s=num_samples / times.step_s if times.step_s else 0.0,
            sync_s=sync_s,
            dropped=len(dropped),
            rows=list(rows),
        )
        if skipped:
            self._run.job.events.write("skipped", f"step {step} changed nothing: {skipped}", level="warning", step=step)
        if samples.truncated == 1.0:
            self._run.job.events.write(
                "truncated",
                f"every answer of step {step} was cut off: raise rollout.max_new_tokens",
                level="warning",
                step=step,
            )
        self.on_dropped(step, dropped)
        self._say_flat(step, samples, len(rows))
        self._say_bound(step)
        self._progress.show(step, samples.reward)

    def on_push(self, delivered: Delivered) -> None:
        self._run.job.events.write(
            "push",
            f"{delivered.version} is sampled from on {', '.join(delivered.replicas)}: differs from the learner by "
            f"{delivered.error:.4f} (effect {delivered.effect:.3f})",
            level="warning" if delivered.misses else "info",
            version=str(delivered.version),
            replicas=list(delivered.replicas),
            sync_s=delivered.seconds,
            push_mismatch=delivered.error,
            effect=delivered.effect,
            misses=list(delivered.misses),
        )

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        self._run.job.events.write(
            "evaluation",
            f"step {step}: mean reward {evaluation.reward:.3f} of {evaluation.num_scored} greedy answers",
            level="info" if evaluation.num_scored == evaluation.num_asked else "warning",
            step=step,
            **asdict(evaluation),
        )

    def on_evaluation_interrupted(self, step: int, num_left: int, reason: str, *, is_over: bool) -> None:
        """`is_over`: there is no time to ask them again."""
        what = "are left out" if is_over else "are asked again"
        self._run.job.events.write(
            "evaluation_interrupted",
            f"step {step}: {num_left} rows of eval_data {what}: {reason}",
            level="warning",
            step=step,
            num_left=num_left,
        )

    def on_not_closed(self, name: str, reason: str) -> None:
        self._run.job.events.write("not_closed", f"{name}: {reason}", level="warning")

    def on_dropped(self, step: int, dropped: Sequence[str]) -> None:
        """What came to nothing before the step; none, nothing is said."""
        if dropped:
            self._run.job.events.write(
                "dropped",
                f"{len(dropped)} groups were not learned from: {dropped[0]}",
                level="warning",
                step=step,
                reasons=list(dropped),
            )

    def take_mean_reward(self) -> float:
        """Of the steps since this was asked last."""
        rewards, self._rewards = self._rewards, []
        return fmean(rewards) if rewards else float("-inf")

    def on_checkpoint(self, step: int, reward: float, *, is_best: bool) -> None:
        self._run.job.events.write(
            "checkpoint",
            f"wrote checkpoints/step-{step}, mean reward {reward:.3f}" + (": the best so far" if is_best else ""),
            step=step,
            reward=reward,
            is_best=is_best,
        )

    def _say_flat(self, step: int, samples: SampleFigures, num_groups: int) -> None:
        if samples.flat == num_groups:
            self._run.job.events.write(
                "flat",
                f"every group of step {step} was rewarded alike: there is nothing to learn from; "
                "are the rewards constant?",
                level="warning",
                step=step,
            )

    def _say_bound(self, step: int) -> None:
        if step % WINDOW == 0:
            self._run.job.events.write("bound", bound_by(self._times[-WINDOW:]), step=step)


def _measured(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if value is not None}
