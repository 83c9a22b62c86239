"""One question, one answer."""

from __future__ import annotations

from rollout.messages import Message
from rollout.types import Prompt


class SingleTurn:
    """The row's own messages, and no reply."""

    def start(self, prompt: Prompt) -> tuple[Message, ...]:
        return prompt.messages

    async def reply(self, prompt: Prompt, messages: tuple[Message, ...], turn_number: int) -> None:
        return None
