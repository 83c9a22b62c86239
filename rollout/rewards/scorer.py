"""Scores of trajectories, computed in another process so that no reward stalls the caller's event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from engines.errors import TandemError, Unavailable
from rollout.config import RewardConfig
from rollout.rewards.combine import combine
from rollout.rewards.process import Asked, ChildDied, RewardProcess
from rollout.rewards.wire import Job, Valued
from rollout.types import Loss, Prompt, Score, Trajectory

MAX_TRIES = 2
GRACE_S = 2.0
"""How long after its own deadline for async functions the process may still answer."""


class NoValue(Exception):
    """The function `key` ("": which one is not known) gave no value."""

    def __init__(self, key: str, reason: str, *, is_transient: bool = False) -> None:
        super().__init__(reason)
        self.key = key
        self.reason = reason
        self.is_transient = is_transient


class Scorer:
    """Computes rewards in a child process that is made when first needed, and again when it died.

    Plain functions see one trajectory at a time. One that is over its deadline, or ends the process, costs its own
    trajectory; the process is killed, and others that it was computing are asked for once more. Use it on one loop.
    """

    def __init__(self, rewards: Sequence[RewardConfig], timeout_s: float) -> None:
        self._rewards = tuple(rewards)
        self._timeout_s = timeout_s
        self._numbers = itertools.count(1)
        self._turn = asyncio.Lock()
        self._child: RewardProcess | None = None
        self._closed = asyncio.Event()
        self.num_restarts = 0
        """How often the process had to be made again."""

    async def start(self) -> None:
        """Starts the process now. Raises `BadRequest` if the functions cannot be made, `Unavailable` if it dies."""
        async with self._turn:
            await self._living_child()

    async def score(self, prompt: Prompt, trajectories: Sequence[Trajectory]) -> tuple[Score | Loss, ...]:
        """For each trajectory its score, or why it has none, which names the function and the row.

        Each is bounded by `timeout_s` from when its functions are called. Raises `Unavailable` once closed.
        """
        if self._closed.is_set():
            raise Unavailable("this scorer is closed; make another one")
        async with asyncio.TaskGroup() as group:
            scores = [group.create_task(self._score_one(prompt, trajectory)) for trajectory in trajectories]
        return tuple(task.result() for task in scores)

    async def close(self) -> None:
        """Ends the process; scores that are still awaited become reasons. Safe to call twice."""
        self._closed.set()
        if self._child is not None:
            await self._child.kill()
        async with self._turn:  # a process that was being started is ended by whoever started it
            pass

    async def _score_one(self, prompt: Prompt, trajectory: Trajectory) -> Score | Loss:
        for _ in range(MAX_TRIES):
            job = Job.of(next(self._numbers), prompt, trajectory)
            try:
                return await self._try(job)
            except ChildDied:
                continue
            except NoValue as problem:
                return _loss(prompt, problem.key, problem.reason, problem.is_transient)
            except TandemError as error:
                return _loss(prompt, "", error.message, error.retryable)
        return _loss(prompt, "", "the process that computes rewards ended before it answered")

    async def _try(self, job: Job) -> Score:
        """Raises `ChildDied` if the process ended and the job is not known to be the cause."""
        async with self._turn:
            child = await self._living_child()
            asked = child.ask(job)
            await self._wait_called(child, asked)
        try:
            valued = await self._wait_answer(child, asked)
        finally:
            child.forget(job.number)
        if valued.failed:
            raise NoValue(valued.failed, valued.reason, is_transient=valued.is_transient)
        return combine(self._rewards, valued.values)

    async def _wait_called(self, child: RewardProcess, asked: Asked) -> None:
        """Until the child is free for the next job; a child that is not is killed."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.shield(asked.called)
        except TimeoutError as error:
            raise NoValue(asked.key, self._late) from error
        except ChildDied as error:
            if asked.key:
                raise NoValue(asked.key, "it ended the process that computes rewards") from error
            raise
        finally:
            if not asked.called.done() or asked.called.exception() is not None:
                await child.kill()

    async def _wait_answer(self, child: RewardProcess, asked: Asked) -> Valued:
        try:
            async with asyncio.timeout(self._timeout_s + GRACE_S):
                return await asyncio.shield(asked.answered)
        except TimeoutError as error:
            await child.kill()
            raise NoValue("", self._late) from error

    @property
    def _late(self) -> str:
        return f"did not end within {self._timeout_s:g} s; the process was killed"

    async def _living_child(self) -> RewardProcess:
        """With `_turn` held."""
        if self._closed.is_set():
            raise Unavailable("this scorer is closed; make another one")
        if self._child is None or not self._child.is_alive:
            if self._child is not None:
                self.num_restarts += 1
                await self._child.kill()
            self._child = None
            self._child = await RewardProcess.start(self._rewards, self._timeout_s)
            if self._closed.is_set():  # meanwhile
                await self._child.kill()
        return self._child


def _loss(prompt: Prompt, key: str, reason: str, is_transient: bool = False) -> Loss:
    which = f"reward '{key}'" if key else "rewards"
    return Loss(f"{which} of row '{prompt.id}': {reason}", is_transient)
