"""OpenAI's JSON for the fake's answers: whole, and as the events of a stream."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from engines.fake.chat import ChatRequest, Completion, Token
from engines.fake.faults import Faults


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt: int
    cached: int
    completion: int

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """Writes one request's answer: `id`, `model` and the time are the same in all of its parts.

    `hides_logprobs`: they are null.
    """

    request_id: str
    request: ChatRequest
    prompt_ids: tuple[int, ...]
    model: str
    hides_logprobs: bool
    created: int

    @classmethod
    def of(cls, request_id: str, request: ChatRequest, prompt_ids: tuple[int, ...], faults: Faults) -> Reply:
        model = faults.answer_as or request.model
        return cls(request_id, request, prompt_ids, model, faults.logprobs_nan, int(time.time()))

    def whole(self, completions: tuple[Completion, ...], usage: Usage) -> dict[str, Any]:
        choices = [self._choice(index, completion) for index, completion in enumerate(completions)]
        ids = {"prompt_token_ids": list(self.prompt_ids)} if self.request.return_token_ids else {}
        return {**self._head("chat.completion"), "choices": choices, "usage": usage.body(), **ids}

    def opening(self, index: int) -> bytes:
        delta = self._delta(index, {"role": "assistant", "content": ""}, None, None)
        ids = {"prompt_token_ids": list(self.prompt_ids)} if self.request.return_token_ids else {}
        return _sse({**self._head("chat.completion.chunk"), "choices": [delta], **ids})

    def piece(self, index: int, token: Token, finish_reason: str | None) -> bytes:
        logprobs = self._logprobs((token,)) if self.request.logprobs else None
        delta = self._delta(index, {"content": token.text}, logprobs, finish_reason)
        return self._event([{**delta, **self._token_ids((token,))}])

    def ending(self, index: int, finish_reason: str) -> bytes:
        return self._event([self._delta(index, {"content": ""}, None, finish_reason)])

    def usage(self, usage: Usage) -> bytes:
        return _sse({**self._head("chat.completion.chunk"), "choices": [], "usage": usage.body()})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": self._logprobs(completion.tokens) if self.request.logprobs else None,
            "finish_reason": completion.finish_reason,
            **self._token_ids(completion.tokens),
        }

    def _token_ids(self, tokens: tuple[Token, ...]) -> dict[str, list[int]]:
        return {"token_ids": [token.id for token in tokens]} if self.request.return_token_ids else {}

    def _delta(self, index: int, delta: dict[str, str], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _event(self, choices: list[dict[str, Any]]) -> bytes:
        return _sse({**self._head("chat.completion.chunk"), "choices": choices})

    def _logprobs(self, tokens: tuple[Token, ...]) -> dict[str, Any]:
        return {"content": [self._logprob(token) for token in tokens]}

    def _logprob(self, token: Token) -> dict[str, Any]:
        logprob = None if self.hides_logprobs else token.logprob
        entry = {"token": token.text, "logprob": logprob, "bytes": list(token.text.encode())}
        return {**entry, "top_logprobs": [entry] if self.request.top_logprobs else []}


def _sse(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
