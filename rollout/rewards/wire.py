"""What a scorer and its child process say to each other: JSON with its length before it, over a socket.

Of a prompt and a trajectory travels what rewards read: ids, texts, columns, sampled tokens and why they ended.
Pictures, prompt tokens and log-probabilities stay. Columns that JSON cannot hold arrive as text.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic_core import PydanticSerializationError, to_json

from engines.errors import BadRequest
from rollout.config import RewardConfig
from rollout.messages import Message, Role, Text
from rollout.types import FinishReason, Prompt, Trajectory, Turn

HEADER = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a child: what to compute, and the most seconds for one trajectory."""

    rewards: tuple[RewardConfig, ...]
    timeout_s: float
    type: Literal["setup"] = "setup"


@dataclass(frozen=True, slots=True)
class Said:
    """Of a `Turn`."""

    text: str
    token_ids: tuple[int, ...]
    finish: FinishReason


@dataclass(frozen=True, slots=True)
class Job:
    """One trajectory to compute all rewards of; answered by `Calling` for each function, `Called`, and `Valued`."""

    number: int
    prompt_id: str
    messages: tuple[tuple[Role, str], ...]
    fields: Mapping[str, Any]
    turns: tuple[Said, ...]
    type: Literal["job"] = "job"

    @classmethod
    def of(cls, number: int, prompt: Prompt, trajectory: Trajectory) -> Job:
        messages = tuple((message.role, message.text) for message in prompt.messages)
        turns = tuple(Said(turn.text, turn.token_ids, turn.finish) for turn in trajectory.turns)
        return cls(number, prompt.id, messages, prompt.fields, turns)

    @property
    def prompt(self) -> Prompt:
        messages = tuple(Message(role, (Text(text),)) for role, text in self.messages)
        return Prompt(self.prompt_id, messages, self.fields)

    @property
    def trajectory(self) -> Trajectory:
        return Trajectory(tuple(Turn((), (), said.token_ids, (), said.text, said.finish) for said in self.turns))


@dataclass(frozen=True, slots=True)
class Ready:
    """The child has made its functions."""

    type: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Refused:
    """The child could not make its functions, and ends."""

    message: str
    param: str | None
    type: Literal["refused"] = "refused"


@dataclass(frozen=True, slots=True)
class Calling:
    """The function `key` is being called: if the child does not go on, it is that one's doing."""

    number: int
    key: str
    type: Literal["calling"] = "calling"


@dataclass(frozen=True, slots=True)
class Called:
    """All functions of a job were called: the child can take another, while async ones go on."""

    number: int
    type: Literal["called"] = "called"


@dataclass(frozen=True, slots=True)
class Valued:
    """The finite value of each function by its key; or, if `failed` names one, the reason why there is none.

    `is_transient`: what that function needs was away.
    """

    number: int
    values: Mapping[str, float]
    failed: str = ""
    reason: str = ""
    is_transient: bool = False
    type: Literal["valued"] = "valued"


Order = Setup | Job
Reply = Ready | Refused | Calling | Called | Valued
_ORDERS: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="type")])
_REPLIES: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="type")])


def to_frame(message: Order | Reply) -> bytes:
    """The message with its length in front, 4 bytes big-endian. Raises `BadRequest` if a text is no Unicode."""
    try:
        body = to_json(message, bytes_mode="base64", fallback=str)
    except (PydanticSerializationError, UnicodeError) as error:
        raise BadRequest(f"cannot be sent to the process that computes rewards: {error}; correct the row") from error
    return HEADER.pack(len(body)) + body


def to_order(body: bytes) -> Order:
    return _ORDERS.validate_json(body)


def to_reply(body: bytes) -> Reply:
    return _REPLIES.validate_json(body)
