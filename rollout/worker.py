"""Rollout workers: a task goes in, a scored group comes out. `RayWorker` reaches a `RolloutWorker` in Ray."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any, Protocol

from engines.errors import DeadlineExceeded, TandemError, Unavailable
from rollout.client import EngineClient
from rollout.config import RewardConfig, RolloutConfig
from rollout.environments import load_environment
from rollout.rewards import Scorer, check_rewards
from rollout.sampler import Sampled, Sampler
from rollout.types import Group, Loss, Score, Task, Trajectory

CALL_MARGIN_S = 10.0
"""What a call to an actor may take over the time that the actor itself keeps to."""
CLOSE_TIMEOUT_S = 10.0


class Worker(Protocol):
    """What the pump asks for groups. Every call ends in time or raises.

    Errors are those of `engines.errors`; after `Unavailable` the worker may be gone, and `revive` brings it back.
    """

    @property
    def name(self) -> str: ...

    async def sample(self, task: Task) -> Group: ...

    async def evaluate(self, task: Task) -> Group: ...

    async def revive(self) -> None: ...

    async def close(self) -> None: ...


class RolloutWorker:
    """Samples and scores groups, any number at once, on one event loop."""

    def __init__(self, config: RolloutConfig, rewards: tuple[RewardConfig, ...]) -> None:
        """Raises `BadRequest` for an environment or a reward that there is not."""
        self._timeout_s = config.group_timeout_s
        self._client = EngineClient(config.request_timeout_s)
        self._sampler = Sampler(self._client, load_environment(config.environment, config.environment_options), config)
        self._scorer = Scorer(rewards, config.reward_timeout_s)

    async def sample(self, task: Task) -> Group:
        """All members that could be had, those lost with their reasons; whether they are enough is the caller's.

        Raises `DeadlineExceeded` if sampling takes `group_timeout_s`; what was sampled until then is aborted.
        """
        return await self._work(task, greedy=False)

    async def evaluate(self, task: Task) -> Group:
        """One greedy trajectory, whatever the task's `num_samples`, with its score; else as `sample`."""
        return await self._work(replace(task, num_samples=1), greedy=True)

    async def close(self) -> None:
        await self._client.close()
        await self._scorer.close()

    async def _work(self, task: Task, greedy: bool) -> Group:
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                sampled = await self._sampler.sample(task, greedy)
        except TimeoutError:
            raise DeadlineExceeded(
                f"prompt {task.prompt.id} was not sampled within {self._timeout_s:g} s; raise "
                "rollout.group_timeout_s if groups may take longer"
            ) from None
        scores = await self._score(task, sampled.trajectories, time.monotonic() - began_s)
        return _group(task, sampled, scores, time.monotonic() - began_s)

    async def _score(
        self, task: Task, trajectories: tuple[Trajectory, ...], sampling_s: float
    ) -> tuple[Score | Loss, ...]:
        """In the time that is left. Of what is not scored in it the row is the cause, unless sampling took longer."""
        if not trajectories:
            return ()
        left_s = self._timeout_s - sampling_s
        try:
            async with asyncio.timeout(left_s):
                return await self._scorer.score(task.prompt, trajectories)
        except TimeoutError:
            reason = f"prompt {task.prompt.id} was not scored within {left_s:.1f} s of {self._timeout_s:g} s"
            return (Loss(reason, is_transient=sampling_s > left_s),) * len(trajectories)


def _group(task: Task, sampled: Sampled, scores: tuple[Score | Loss, ...], seconds: float) -> Group:
    pairs = tuple(zip(sampled.trajectories, scores, strict=True))
    losses = (*sampled.losses, *(score for score in scores if isinstance(score, Loss)))
    return Group(
        prompt=task.prompt,
        version=task.version,
        trajectories=tuple(trajectory for trajectory, score in pairs if isinstance(score, Score)),
        scores=tuple(score for score in scores if isinstance(score, Score)),
        num_lost=len(losses),
        num_transient=sum(loss.is_transient for loss in losses),
        losses=tuple(loss.reason for loss in losses),
        other_version=next((loss.reason for loss in losses if loss.is_other_version), ""),
        seconds=seconds,
        by_replica=sampled.by_replica,
    )


class RayWorker:
    """A `RolloutWorker` in a Ray actor, which ends with the job."""

    def __init__(self, number: int, config: RolloutConfig, rewards: tuple[RewardConfig, ...]) -> None:
        """Makes the actor; Ray must be there. Waits for nothing."""
        self.name = f"rollout worker {number}"
        self._config = config
        self._rewards = rewards
        self._actor = self._make()
        self._is_lost = False

    async def sample(self, task: Task) -> Group:
        group: Group = await self._call("sample", task, timeout_s=self._config.group_timeout_s + CALL_MARGIN_S)
        return group

    async def evaluate(self, task: Task) -> Group:
        group: Group = await self._call("evaluate", task, timeout_s=self._config.group_timeout_s + CALL_MARGIN_S)
        return group

    async def revive(self) -> None:
        """A new actor, if the old one was found dead; nothing otherwise, so that all who noticed may call it."""
        if self._is_lost:
            self._actor = self._make()
            self._is_lost = False

    async def close(self) -> None:
        """Ends the actor, with what it is at."""
        import ray

        try:
            await self._call("close", timeout_s=CLOSE_TIMEOUT_S)
        except (Unavailable, DeadlineExceeded):
            pass  # what does not answer is ended all the same
        ray.kill(self._actor)

    def _make(self) -> Any:
        import ray

        # An evaluation may run beside all the groups of training.
        options = {"num_cpus": 0, "max_concurrency": 2 * self._config.max_running, "scheduling_strategy": "SPREAD"}
        return ray.remote(RolloutWorker).options(**options).remote(self._config, self._rewards)

    async def _call(self, method: str, *arguments: object, timeout_s: float) -> Any:
        import ray
        import ray.exceptions

        actor = self._actor
        reference = getattr(actor, method).remote(*arguments)
        try:
            return await asyncio.wait_for(reference, timeout_s)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TandemError):
                raise error.cause from None
            raise
        except ray.exceptions.ActorUnavailableError as error:  # it may live
            raise DeadlineExceeded(f"{self.name} cannot be reached at this moment") from error
        except ray.exceptions.RayError as error:
            self._is_lost = self._is_lost or actor is self._actor
            raise Unavailable(f"{self.name} is gone; another one takes its place", detail=str(error)) from error
        except TimeoutError:
            ray.cancel(reference)  # which aborts its engines' work
            raise DeadlineExceeded(f"{self.name} did not answer '{method}' within {timeout_s:g} s") from None
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise


def start_workers(config: RolloutConfig, rewards: tuple[RewardConfig, ...]) -> tuple[RayWorker, ...]:
    """`num_workers` actors of this job. Ray must be initialized.

    Raises `BadRequest` for an environment or a reward that there is not, or whose options are wrong.
    """
    load_environment(config.environment, config.environment_options)
    check_rewards(rewards)
    return tuple(RayWorker(number, config, rewards) for number in range(config.num_workers))
