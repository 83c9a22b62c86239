"""The learners' own form of data: an `Example` is a prompt, one answer, and the images that the prompt shows."""

from __future__ import annotations

from dataclasses import dataclass

from rollout.messages import Message, Part, Picture, Role, Text, pictures_of, to_data_url

__all__ = ["Example", "Message", "Part", "Picture", "Role", "Text", "to_data_url"]


@dataclass(frozen=True, slots=True)
class Example:
    """`prompt` ends before the assistant's turn that `answer` is: only its tokens carry loss.

    `id` is the row's line number, with `#turn` behind it where the row has several assistant turns.
    """

    id: str
    line: int
    prompt: tuple[Message, ...]
    answer: str

    @property
    def images(self) -> tuple[Picture, ...]:
        return pictures_of(self.prompt)
