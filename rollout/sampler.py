"""Samples tasks: all trajectories that can be had, and why the others cannot."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rollout.client import Client
from rollout.config import RolloutConfig
from rollout.environments import Environment
from rollout.environments.single_turn import SingleTurn
from rollout.loads import Loads
from rollout.sampling import Lost, Manner, Member, Sampling, blame
from rollout.types import Loss, Task, Trajectory

RETRY_DELAY_S = 0.2


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was had of a task. `losses` has one for each sample that was not."""

    trajectories: tuple[Trajectory, ...]
    losses: tuple[Loss, ...]
    by_replica: Mapping[str, int]


class Sampler:
    """Any number of tasks at once, on one event loop; it knows how much each replica is asked by all of them."""

    def __init__(
        self, client: Client, environment: Environment, config: RolloutConfig, retry_delay_s: float = RETRY_DELAY_S
    ) -> None:
        """`retry_delay_s`: before a replica that just failed a sample is asked for it again."""
        self._client = client
        self._environment = environment
        self._config = config
        self._retry_delay_s = retry_delay_s
        self._max_turns = 1 if isinstance(environment, SingleTurn) else config.max_turns
        self._loads = Loads()

    async def sample(self, task: Task, greedy: bool = False) -> Sampled:
        """What fails is a loss with its reason, and never raises.

        Single turns are one request, which shares the prompt; what it lacks is asked for one by one. Trajectories of
        several turns have requests of their own, and stay on their replica while it answers. `greedy`: temperature 0.
        """
        try:
            opening = self._environment.start(task.prompt)
        except Exception as error:  # an environment may be anybody's code
            return _nothing(task, blame(error))
        if not task.targets:
            return _nothing(task, Loss(f"there is no replica to ask for prompt {task.prompt.id}", is_transient=True))
        manner = self._manner(greedy)
        sampling = Sampling(task, opening, manner, self._client, self._environment, self._loads)
        members = [Member() for _ in range(task.num_samples)]
        if manner.max_turns == 1 and len(members) > 1 and not greedy:  # engines give one greedy answer a request
            try:
                await sampling.open_together(members)
            except Lost as lost:
                return _nothing(task, lost.loss)
        async with asyncio.TaskGroup() as group:
            ends = [group.create_task(_end(sampling, member)) for member in members]
        return _collect(members, [end.result() for end in ends])

    def _manner(self, greedy: bool) -> Manner:
        config = self._config
        return Manner(
            temperature=0.0 if greedy else config.temperature,
            max_new_tokens=config.max_new_tokens,
            max_turns=self._max_turns,
            reply_timeout_s=config.environment_timeout_s,
            max_retries=config.max_retries,
            retry_delay_s=self._retry_delay_s,
        )


async def _end(sampling: Sampling, member: Member) -> Trajectory | Loss:
    try:
        return await sampling.finish(member)
    except Lost as lost:
        return lost.loss


def _collect(members: Sequence[Member], ends: Sequence[Trajectory | Loss]) -> Sampled:
    by_replica = Counter(
        member.replica for member, end in zip(members, ends, strict=True) if isinstance(end, Trajectory)
    )
    return Sampled(
        trajectories=tuple(end for end in ends if isinstance(end, Trajectory)),
        losses=tuple(end for end in ends if isinstance(end, Loss)),
        by_replica=dict(by_replica),
    )


def _nothing(task: Task, loss: Loss) -> Sampled:
    return Sampled((), (loss,) * task.num_samples, {})
