"""SGLang's answers to the samples of one request, as the one answer that Tandem's engines give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .refusal import Refusal


@dataclass
class Usage:
    """Tokens of one request: the prompt counts once, however many samples there are. `hit` is what the prefix cache
    has saved in all of them, `cached` in the first."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    hit: int = 0
    _seen: set[int] = field(default_factory=set)

    def add(self, index: int, said: dict[str, Any] | None) -> None:
        if said is None or index in self._seen:
            return
        self._seen.add(index)
        cached = int((said.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        self.completion += int(said.get("completion_tokens") or 0)
        self.hit += cached
        if index == 0:
            self.prompt, self.cached = int(said.get("prompt_tokens") or 0), cached

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(frozen=True)
class Heading:
    """What all parts of one answer begin with. `request_id` is the caller's, `version` what it asked for."""

    request_id: str
    version: str
    created: int

    def of(self, kind: str) -> dict[str, Any]:
        head = {"id": f"chatcmpl-{self.request_id}", "object": kind, "created": self.created}
        return {**head, "model": self.version}


def whole_answer(heading: Heading, samples: list[dict[str, Any]], usage: Usage, *, wants_ids: bool) -> dict[str, Any]:
    """`samples` are SGLang's answers, of one choice each; raises `Refusal` for one that is none."""
    choices = []
    for index, said in enumerate(samples):
        if len(said.get("choices") or ()) != 1:
            raise Refusal(502, "engine_fault", "the engine did not answer with one choice", repr(said))
        usage.add(index, said.get("usage"))
        choices.append(_choice(index, said["choices"][0], wants_ids=wants_ids))
    ids = {"prompt_token_ids": samples[0]["choices"][0].get("prompt_token_ids")} if wants_ids else {}
    return {**heading.of("chat.completion"), "choices": choices, "usage": usage.body(), **ids}


def _choice(index: int, said: dict[str, Any], *, wants_ids: bool) -> dict[str, Any]:
    message = {name: value for name, value in said["message"].items() if value is not None}
    return {
        "index": index,
        "message": message,
        "logprobs": said.get("logprobs"),
        "finish_reason": said.get("finish_reason"),
        **({"token_ids": _token_ids(said)} if wants_ids else {}),
    }


def _token_ids(said: dict[str, Any]) -> list[int]:
    """The ids that the log-probabilities are of, where there are any."""
    entries = (said.get("meta_info") or {}).get("output_token_logprobs")
    return said["token_ids"] if entries is None else [int(entry[1]) for entry in entries]


def chunk(heading: Heading, index: int, said: dict[str, Any]) -> dict[str, Any]:
    """One event of sample `index`; SGLang numbers the choices of each sample from 0."""
    choices = [{**choice, "index": index} for choice in said.get("choices", ())]
    return {**heading.of("chat.completion.chunk"), "choices": choices}


def usage_chunk(heading: Heading, usage: Usage) -> dict[str, Any]:
    return {**heading.of("chat.completion.chunk"), "choices": [], "usage": usage.body()}
