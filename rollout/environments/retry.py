"""A second chance: an answer that is wrong is said to be so, and the model may try again."""

from __future__ import annotations

from engines.config import Section
from engines.errors import BadRequest
from rollout.messages import Message, Text, pictures_of
from rollout.types import Prompt


class Retry(Section):
    """Ends when the answer is that of the row, case and spaces aside; until then it asks again, up to `max_turns`."""

    text: str = "That is not right. Look again and answer once more."
    """What a wrong answer is told."""
    repeat_images: bool = False
    """Whether the row's images are shown again with it."""
    field: str = "answer"
    """The column with the right answer; a list means any of them."""

    def start(self, prompt: Prompt) -> tuple[Message, ...]:
        """Raises `BadRequest` if the row has no such column."""
        self._answers(prompt)
        return prompt.messages

    async def reply(
        self, prompt: Prompt, messages: tuple[Message, ...], turn_number: int
    ) -> tuple[Message, ...] | None:
        if _normal(messages[-1].text) in self._answers(prompt):
            return None
        pictures = pictures_of(prompt.messages) if self.repeat_images else ()
        return (Message("user", (*pictures, Text(self.text))),)

    def _answers(self, prompt: Prompt) -> frozenset[str]:
        if self.field not in prompt.fields:
            raise BadRequest(
                f"prompt {prompt.id} has no column '{self.field}', which the environment 'retry' compares answers "
                "with; add it to the data, or set rollout.environment_options.field",
                param="rollout.environment_options.field",
            )
        value = prompt.fields[self.field]
        return frozenset(_normal(str(each)) for each in (value if isinstance(value, list | tuple) else (value,)))


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()
