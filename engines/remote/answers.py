"""What is read of a remote server's answers: lenient, since every server adds fields of its own."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ModelCard(BaseModel):
    id: str


class ModelList(BaseModel):
    data: list[ModelCard]

    def names(self) -> tuple[str, ...]:
        return tuple(card.id for card in self.data)


class Message(BaseModel):
    """Of a whole answer, or of one event of a stream (a delta)."""

    content: str | None = None


class TokenLogprob(BaseModel):
    logprob: float


class Logprobs(BaseModel):
    content: list[TokenLogprob] | None = None


class Choice(BaseModel):
    message: Message | None = None
    delta: Message | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None

    @property
    def text(self) -> str:
        said = self.message or self.delta
        return (said.content if said else None) or ""

    @property
    def has_logprobs(self) -> bool:
        return bool(self.logprobs and self.logprobs.content)


class Usage(BaseModel):
    prompt_tokens: int


class ChatAnswer(BaseModel):
    """A chat completion."""

    id: str = ""
    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None

    @property
    def first(self) -> Choice:
        return self.choices[0]


class ChatEvent(BaseModel):
    """One event of a stream; the last may hold the usage and no choice."""

    choices: list[Choice]
