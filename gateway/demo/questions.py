"""Questions with known answers, read from the rows that `python -m learners toy rows` writes."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class Question(BaseModel):
    """One row: a picture, a question about it, the right answer, and what kind of question it is."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    image: Path
    text: str
    answer: str
    kind: str

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        """What an OpenAI client sends: the picture first, then the question."""
        url = f"data:image/png;base64,{base64.b64encode(self.image.read_bytes()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": self.text}]
        return [{"role": "user", "content": content}]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `version` is what the answer's `model` names; times are `time.monotonic()`."""

    question: Question
    completion_id: str
    version: str
    text: str
    started_s: float
    ended_s: float

    @property
    def is_right(self) -> bool:
        return self.text.strip() == self.question.answer


def read_questions(path: Path) -> tuple[Question, ...]:
    with path.open("rb") as file:
        return tuple(Question.model_validate_json(line) for line in file)
