"""The chat API of an engine as rollouts use it: the request's body, and what is checked of its answer.

Pure: no sockets. Sampling is from the model's whole distribution at the temperature asked for: what an engine would
otherwise take from its model's `generation_config` (top-p, top-k, penalties) is set to off, since the learner's
log-probabilities know nothing of it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from pydantic import BaseModel, Field, ValidationError

from engines.errors import BadRequest, EngineFault, OtherVersion
from engines.types import VersionName
from rollout.messages import Message, Picture, Text, to_data_url
from rollout.types import FinishReason, Turn

PRIORITY = 10
"""Of all rollouts; users' requests and the proof of a delivery are 0, and lower goes first. Engines with slots for
rollouts have priority scheduling."""
IMPOSSIBLE_LOGPROB = -9999.0
"""What engines say instead of the logarithm of zero, and of a token whose probability they do not know."""
MAX_DETAIL_CHARS = 500


@dataclass(frozen=True, slots=True)
class Question:
    """One request: `num_samples` answers of `version` to a conversation.

    `prompt_id` is only for messages. `temperature` 0 is greedy, and then there is one answer. There is no seed: what an
    engine answers depends on what else it is asked anyway, and vLLM 0.32 on a CPU ends when a seeded request's prompt
    does not fit into one of its steps.
    """

    prompt_id: str
    version: VersionName
    messages: tuple[Message, ...]
    num_samples: int
    temperature: float
    max_new_tokens: int


def to_body(question: Question) -> bytes:
    """The request as JSON. Reads the images' files; raises `BadRequest` if one cannot be read."""
    body = {
        "model": str(question.version),
        "messages": [_message(message, question.prompt_id) for message in question.messages],
        "n": question.num_samples,
        "temperature": question.temperature,
        "max_completion_tokens": question.max_new_tokens,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": True,
        "return_token_ids": True,
        "stream": False,
        "priority": PRIORITY,
    }
    return json.dumps(body).encode()


def read_turns(raw: bytes, question: Question, replica: str) -> tuple[Turn, ...]:
    """The answers, at most `num_samples`.

    Raises `OtherVersion` if another version answered, and `EngineFault` if token ids and log-probabilities are not all
    there, of one length, and finite: none of the answers is used then.
    """
    answer = _parse(raw, question, replica)
    if answer.model != str(question.version):
        raise OtherVersion(
            f"{replica} was asked for {question.version} and answered as '{answer.model[:80]}': its answers are of "
            "another policy and are not used"
        )
    if not answer.prompt_token_ids:
        raise _fault(replica, question, "no prompt_token_ids; it must support return_token_ids")
    if len(answer.choices) > question.num_samples:
        raise _fault(replica, question, f"{len(answer.choices)} choices where {question.num_samples} were asked for")
    return tuple(_turn(choice, answer.prompt_token_ids, question, replica) for choice in answer.choices)


class _Entry(BaseModel):
    logprob: float | None


class _Logprobs(BaseModel):
    content: tuple[_Entry, ...] = ()


class _Said(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Said
    logprobs: _Logprobs | None = None
    token_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None


class _Answer(BaseModel):
    """Lenient: an engine's answer carries much that rollouts do not read."""

    model: str
    prompt_token_ids: tuple[int, ...] | None = None
    choices: tuple[_Choice, ...] = Field(min_length=1)


def _parse(raw: bytes, question: Question, replica: str) -> _Answer:
    try:
        return _Answer.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise EngineFault(
            f"{replica} answered prompt {question.prompt_id} with what is no chat completion: "
            f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}",
            detail=raw[:MAX_DETAIL_CHARS].decode(errors="replace"),
        ) from error


def _turn(choice: _Choice, prompt_ids: tuple[int, ...], question: Question, replica: str) -> Turn:
    finish = _finish(choice, question, replica)
    if choice.token_ids is None:
        raise _fault(replica, question, "no token_ids; it must support return_token_ids")
    if not choice.token_ids and finish is not FinishReason.ABORT:
        raise _fault(replica, question, "not one sampled token")
    return Turn(
        messages=question.messages,
        prompt_ids=prompt_ids,
        token_ids=choice.token_ids,
        logprobs=_logprobs(choice, len(choice.token_ids), question, replica),
        text=choice.message.content or "",
        finish=finish,
    )


def _finish(choice: _Choice, question: Question, replica: str) -> FinishReason:
    try:
        return FinishReason(choice.finish_reason or "")
    except ValueError:
        raise _fault(replica, question, f"the finish_reason '{choice.finish_reason}'") from None


def _logprobs(choice: _Choice, num_tokens: int, question: Question, replica: str) -> tuple[float, ...]:
    entries = choice.logprobs.content if choice.logprobs else ()
    if len(entries) != num_tokens:
        raise _fault(replica, question, f"{len(entries)} log-probabilities for {num_tokens} tokens")
    logprobs = tuple(math.nan if entry.logprob is None else entry.logprob for entry in entries)
    for place, logprob in enumerate(logprobs):
        if not math.isfinite(logprob) or logprob <= IMPOSSIBLE_LOGPROB:
            raise _fault(replica, question, f"the log-probability {logprob} of sampled token {place}")
    return logprobs


def _fault(replica: str, question: Question, what: str) -> EngineFault:
    return EngineFault(f"{replica} answered prompt {question.prompt_id} ({question.version}) with {what}")


def _message(message: Message, prompt_id: str) -> dict[str, object]:
    if all(isinstance(part, Text) for part in message.parts):
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [_part(part, prompt_id) for part in message.parts]}


def _part(part: Text | Picture, prompt_id: str) -> dict[str, object]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    try:
        content = part.read()
    except OSError as error:
        raise BadRequest(
            f"prompt {prompt_id}: its image {part.path} cannot be read ({error.strerror}); check that every node that "
            "samples sees the file",
            param="image",
        ) from error
    return {"type": "image_url", "image_url": {"url": to_data_url(content)}}
