"""One task being sampled: its members, each on its way from the opening to the end of its trajectory."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from dataclasses import dataclass, field, replace

from engines.errors import BadRequest, DeadlineExceeded, EngineFault, OtherVersion, TandemError, Unavailable
from rollout.chat import Question
from rollout.client import Client
from rollout.environments import Environment
from rollout.loads import Loads
from rollout.messages import Message, Text
from rollout.types import FinishReason, Loss, Target, Task, Trajectory, Turn

_log = logging.getLogger(__name__)


class Lost(Exception):
    """A trajectory that cannot be had."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss.reason)
        self.loss = loss


@dataclass(frozen=True, slots=True)
class Manner:
    """How a task is sampled.

    `reply_timeout_s`: of the environment, between two turns.
    `max_retries`: of one trajectory, over all its turns. A replica that just failed it is asked again only after
    `retry_delay_s`, which doubles up to `max_delay_s`.
    """

    temperature: float
    max_new_tokens: int
    max_turns: int
    reply_timeout_s: float
    max_retries: int
    retry_delay_s: float
    max_delay_s: float = 2.0


@dataclass(slots=True)
class Member:
    """One trajectory of a group: its turns so far, who sampled the last one, where it failed and why.

    `loss` is of its last failure, or of one by another version's answer if there was any; it is transient if any was.
    """

    replica: str = ""
    turns: list[Turn] = field(default_factory=list)
    failed_at: Counter[str] = field(default_factory=Counter)
    loss: Loss = field(default_factory=lambda: Loss(""))

    def take(self, turn: Turn, replica: str) -> None:
        self.turns.append(turn)
        self.replica = replica

    def fail(self, replica: str, loss: Loss) -> None:
        self.failed_at[replica] += 1
        # Or what came later would hide that another version answered.
        kept = self.loss if self.loss.is_other_version else loss
        self.loss = replace(kept, is_transient=loss.is_transient or self.loss.is_transient)


class Sampling:
    """Asks for the members of one task. A member that cannot be had ends with `Lost`."""

    def __init__(
        self,
        task: Task,
        opening: tuple[Message, ...],
        manner: Manner,
        client: Client,
        environment: Environment,
        loads: Loads,
    ) -> None:
        self._task = task
        self._opening = opening
        self._manner = manner
        self._client = client
        self._environment = environment
        self._loads = loads

    async def open_together(self, members: list[Member]) -> None:
        """The first turn of all in one request. Who gets none has failed once, and goes on alone.

        Raises `Lost` if the prompt is refused: for all of them.
        """
        target = self._loads.choose(self._task.targets, {})
        loss = self._broken_off(target)
        try:
            turns = await self._ask(target, self._opening, len(members))
        except _Failed as failed:
            turns, loss = (), failed.loss
        for member, turn in itertools.zip_longest(members, turns):
            if turn is None or turn.finish is FinishReason.ABORT:
                member.fail(target.name, loss)
            else:
                member.take(turn, target.name)

    async def finish(self, member: Member) -> Trajectory:
        """From where the member is to its end. A turn that was cut off for its length is the last one."""
        messages = self._opening
        for number in range(1, self._manner.max_turns + 1):
            if len(member.turns) < number:
                await self._turn(member, messages)
            turn = member.turns[-1]
            if number == self._manner.max_turns or turn.finish is not FinishReason.STOP:
                break
            messages = (*messages, Message("assistant", (Text(turn.text),)))
            said = await self._reply(messages, number)
            if not said:
                break
            messages = (*messages, *said)
        return Trajectory(tuple(member.turns))

    async def _turn(self, member: Member, messages: tuple[Message, ...]) -> None:
        """Asks until one turn is there, elsewhere after a failure if there is an elsewhere."""
        while member.failed_at.total() <= self._manner.max_retries:
            target = self._loads.choose(self._task.targets, member.failed_at, member.replica)
            delay_s = self._delay_s(member.failed_at[target.name])
            try:
                turns = await self._ask(target, messages, 1, delay_s)
            except _Failed as failed:
                member.fail(target.name, failed.loss)
                continue
            if turns[0].finish is not FinishReason.ABORT:
                member.take(turns[0], target.name)
                return
            member.fail(target.name, self._broken_off(target))
        raise Lost(member.loss)

    async def _ask(
        self, target: Target, messages: tuple[Message, ...], num_samples: int, delay_s: float = 0.0
    ) -> tuple[Turn, ...]:
        question = Question(
            prompt_id=self._task.prompt.id,
            version=self._task.version,
            messages=messages,
            num_samples=num_samples,
            temperature=self._manner.temperature,
            max_new_tokens=self._manner.max_new_tokens,
        )
        try:
            with self._loads.asking(target.name, num_samples):  # from its choice on, or all would choose the same
                await asyncio.sleep(delay_s)
                return await self._client.ask(target, question)
        except BadRequest as error:  # it would be refused elsewhere too
            raise Lost(Loss(error.message)) from error
        except (Unavailable, DeadlineExceeded, EngineFault) as error:
            _log.warning("%s: %s", error.message, error.detail or "(no more was said)")
            raise _Failed(Loss(error.message, error.retryable, isinstance(error, OtherVersion))) from error

    async def _reply(self, messages: tuple[Message, ...], turn_number: int) -> tuple[Message, ...] | None:
        timeout_s = self._manner.reply_timeout_s
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                return await self._environment.reply(self._task.prompt, messages, turn_number)
        except Exception as error:  # an environment may be anybody's code
            if deadline.expired():
                raise Lost(Loss(f"the environment did not reply within {timeout_s:g} s")) from error
            raise Lost(blame(error)) from error

    def _broken_off(self, target: Target) -> Loss:
        return Loss(f"{target.name} broke off its answer to prompt {self._task.prompt.id}", is_transient=True)

    def _delay_s(self, num_failed: int) -> float:
        if num_failed == 0:
            return 0.0
        return min(self._manner.max_delay_s, self._manner.retry_delay_s * 2.0 ** (num_failed - 1))


class _Failed(Exception):
    """One request that failed, and may not fail elsewhere."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss.reason)
        self.loss = loss


def blame(error: Exception) -> Loss:
    """The loss that an environment is to blame for: a transient one if that says so itself."""
    if isinstance(error, TandemError):
        return Loss(f"the environment failed: {error.message}", error.retryable)
    return Loss(f"the environment failed: {type(error).__name__}: {error}")
