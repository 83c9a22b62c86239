"""Scores a known answer: the log-probabilities of the prompt's last tokens, by the model's own chat template."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import Any

from .asgi import Scope
from .inside import Inside
from .refusal import Refusal, bad_request, too_late
from .requests import Requests
from .settings import Settings
from .shelf import AdapterShelf

SCORE_TIMEOUT_S = 60.0
END_TIMEOUT_S = 10.0
UNSCORED = "the engine did not score the probe; its log says why"


class Scorer:
    """`score` gives `{"token_ids": [...], "logprobs": [...]}`, both of `num_tokens`; natural logarithm."""

    def __init__(self, inside: Inside, requests: Requests, shelf: AdapterShelf, settings: Settings) -> None:
        self._inside = inside
        self._requests = requests
        self._shelf = shelf
        self._base = settings.base

    async def score(
        self, outer: Scope, version: str, text: str, answer: str, image: str | None, num_tokens: int
    ) -> dict[str, Any]:
        """The answer is the last turn of the prompt, so `num_tokens` counts its end-of-turn token. Raises `Refusal`."""
        if not self._shelf.has(version):
            raise Refusal(404, "not_found", f"{version} is not loaded here; load it first")
        if image is not None and not image.startswith("data:"):
            raise bad_request("an image must be a data: URL")
        body = self._body(version, text, answer, image)
        request_id, exchange = self._requests.begin(outer, version, "/generate", body)
        try:
            said = await asyncio.wait_for(exchange.whole(), SCORE_TIMEOUT_S)
        except TimeoutError as error:
            await self._end(outer, request_id)
            raise too_late(f"the engine did not score the probe within {SCORE_TIMEOUT_S:g} s") from error
        if said.status != 200:
            raise Refusal(400, "invalid_request", UNSCORED, said.reason())
        return _last(said.json().get("meta_info", {}).get("input_token_logprobs") or [], num_tokens)

    async def _end(self, outer: Scope, request_id: str) -> None:
        with suppress(TimeoutError):  # an engine that does not end it either is not waited for
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._requests.end(outer, [request_id])

    def _body(self, version: str, text: str, answer: str, image: str | None) -> dict[str, Any]:
        return {
            "text": self._inside.render(_messages(text, answer, image)),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            **({} if image is None else {"image_data": [image]}),
            **({} if version == self._base else {"lora_path": version}),
        }


def _messages(text: str, answer: str, image: str | None) -> list[dict[str, Any]]:
    question: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        question.insert(0, {"type": "image"})
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _last(entries: list[Any], num_tokens: int) -> dict[str, Any]:
    """`entries` are (log-probability, token id, text) of each of the prompt's tokens; the first one has no
    log-probability."""
    if num_tokens < 1 or num_tokens >= len(entries):
        raise bad_request(f"num_tokens {num_tokens} is not within the prompt of {len(entries)} tokens")
    tail = entries[-num_tokens:]
    logprobs = [math.nan if entry[0] is None else float(entry[0]) for entry in tail]
    if not all(map(math.isfinite, logprobs)):
        raise Refusal(502, "engine_fault", "the engine scored the probe with NaN or Inf; does it serve the model well?")
    return {"token_ids": [int(entry[1]) for entry in tail], "logprobs": logprobs}
