"""Rows as prompts: what is asked, without an answer to learn from, and the columns that rewards read.

    {"image": ..., "text": question, ...}              `image` may be absent, or `images` a list
    {"messages": [{"role", "content"}, ...], ...}      ends with the user; of one that ends with the assistant, that
                                                       turn is the column `answer`, unless the row has one

Every other column is kept for the rewards. All of a row's images are shown in its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from engines.errors import BadRequest
from learners.data.formats import MediaRow, RowMessage, check_media, messages_from, validate_row
from rollout.types import Prompt

ANSWER = "answer"
_NOT_FIELDS = frozenset({"image", "images", "text", "messages"})


class QuestionPrompt(MediaRow):
    """One question."""

    text: str = Field(min_length=1)

    def messages_of(self) -> list[RowMessage]:
        return [RowMessage(role="user", content=self.text)]


class MessagesPrompt(MediaRow):
    """A conversation."""

    messages: list[RowMessage] = Field(min_length=1)

    def messages_of(self) -> list[RowMessage]:
        return self.messages

    @model_validator(mode="after")
    def _order(self) -> MessagesPrompt:
        roles = [message.role for message in self.messages]
        if "system" in roles[1:]:
            raise ValueError("a system message must be the first one")
        turns = [role for role in roles if role != "system"]
        if not turns or turns != [("user", "assistant")[index % 2] for index in range(len(turns))]:
            raise ValueError("user and assistant must take turns, the user first")
        return self


def parse_prompt(values: object, line: int, folder: Path) -> tuple[Prompt, ...]:
    """One row as one prompt. Raises `BadRequest` with the reason."""
    values = check_media(values)
    kind = MessagesPrompt if values.get("messages") is not None else QuestionPrompt
    if kind is QuestionPrompt and values.get("text") is None:
        raise BadRequest(f"neither 'messages' nor 'text' among its keys: {', '.join(map(str, values))[:200]}")
    messages = tuple(messages_from(validate_row(kind, values), folder))
    fields = _fields(values)
    if messages[-1].role == "assistant":
        fields = {ANSWER: messages[-1].text, **fields}
        messages = messages[:-1]
    return (Prompt(str(line), messages, fields),)


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _NOT_FIELDS and value is not None}
