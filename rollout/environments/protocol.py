"""The seam of environments."""

from __future__ import annotations

from typing import Protocol

from rollout.messages import Message
from rollout.types import Prompt


class Environment(Protocol):
    """Opens a conversation and goes on with it. One serves all trajectories at once: it keeps nothing of any of them.

    Only what the model samples carries loss; what an environment says, text or images, is context. One that raises, or
    does not reply within `rollout.environment_timeout_s`, loses the trajectory at hand, with the reason. `Unavailable`
    and `DeadlineExceeded` say that what it needs is away: the row is not to blame.
    """

    def start(self, prompt: Prompt) -> tuple[Message, ...]:
        """The messages before the first turn, at least one."""
        ...

    async def reply(
        self, prompt: Prompt, messages: tuple[Message, ...], turn_number: int
    ) -> tuple[Message, ...] | None:
        """What is said after turn `turn_number` (from 1), the model's answer being the last of `messages`.

        None ends the trajectory; so does `rollout.max_turns`, after whose last turn nothing is asked here.
        """
        ...
