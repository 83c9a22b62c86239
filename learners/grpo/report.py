"""What one optimizer step saw: the numbers of its event, from the groups that it learned from and the time it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from learners.grpo.advantage import is_flat
from rollout.types import Group

BUSY_FRACTION = 0.1
"""Under this share of a step spent on waiting, the learner is what the run is bound by."""


@dataclass(frozen=True, slots=True)
class SampleFigures:
    """Of the trajectories of one step. `flat`: groups whose members were all rewarded alike, which teach nothing.

    Staleness counts optimizer steps; lengths are of sampled tokens.
    """

    reward: float
    reward_std: float
    parts: Mapping[str, float]
    num_tokens: float
    truncated: float
    staleness_mean: float
    staleness_max: int
    flat: int
    lost: int
    num_samples: int


@dataclass(frozen=True, slots=True)
class TimeFigures:
    """Seconds of one step, from the end of the one before: in all, waiting for groups, and with no group running."""

    step_s: float
    waited_s: float
    engine_idle_s: float

    @property
    def learner_idle(self) -> float:
        return _share(self.waited_s, self.step_s)

    @property
    def engine_idle(self) -> float:
        return _share(self.engine_idle_s, self.step_s)


def look_at(groups: Sequence[Group], learner_version: int, *, each_reward: bool) -> SampleFigures:
    """At least one group, each with at least one scored trajectory. `each_reward`: see `is_flat`."""
    scores = [score for group in groups for score in group.scores]
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    staleness = [learner_version - group.version.number for group in groups for _ in group.trajectories]
    totals = [score.total for score in scores]
    names = list(dict.fromkeys(name for score in scores for name in score.parts))
    return SampleFigures(
        reward=fmean(totals),
        reward_std=pstdev(totals),
        parts={name: fmean(score.parts[name] for score in scores if name in score.parts) for name in names},
        num_tokens=fmean(trajectory.num_tokens for trajectory in trajectories),
        truncated=fmean(trajectory.is_truncated for trajectory in trajectories),
        staleness_mean=fmean(staleness),
        staleness_max=max(staleness),
        flat=sum(is_flat(group.scores, each_reward=each_reward) for group in groups),
        lost=sum(group.num_lost for group in groups),
        num_samples=len(trajectories),
    )


def bound_by(times: Sequence[TimeFigures]) -> str:
    """One line: what more of would make the run faster."""
    learner_idle = _share(sum(t.waited_s for t in times), sum(t.step_s for t in times))
    engine_idle = _share(sum(t.engine_idle_s for t in times), sum(t.step_s for t in times))
    shares = f"the learner waited {learner_idle:.0%} of the time, no group was being sampled for {engine_idle:.0%}"
    if learner_idle > max(BUSY_FRACTION, engine_idle):
        return f"bound by rollout: {shares}; more engines, or a higher max_running, would help"
    if engine_idle > max(BUSY_FRACTION, learner_idle):
        return f"bound by learner: {shares}; a higher max_staleness or a faster learner would help"
    return f"balanced: {shares}"


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0
