"""Scores a known answer: the log-probabilities of the prompt's last tokens, by vLLM's own chat rendering."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from .refusal import Refusal, reason_of

UNSCORED = "the engine did not score the probe; its log says why"


async def score(chat: Any, version: str, text: str, answer: str, image: str | None, num_tokens: int) -> dict[str, Any]:
    """`{"token_ids": [...], "logprobs": [...]}`, both of `num_tokens`; natural logarithm.

    `chat` is the server's `openai_serving_chat`. The answer is the last turn of the prompt, so `num_tokens` counts its
    end-of-turn token. Raises `Refusal` if the server won't score it.
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    request = ChatCompletionRequest(
        model=version,
        messages=_messages(text, answer, image),
        add_generation_prompt=False,
        max_completion_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
    )
    try:
        reply = await chat.create_chat_completion(request, None)
    except (ValueError, TypeError) as error:  # how vLLM says that it won't take a prompt
        raise Refusal(400, "invalid_request", UNSCORED, reason_of(error)) from error
    if getattr(reply, "error", None) is not None:
        reason = reason_of(ValueError(reply.error.message))
        if int(reply.error.code) == HTTPStatus.NOT_FOUND:
            raise Refusal(404, "not_found", f"{version} is not loaded here; load it first", reason)
        raise Refusal(400, "invalid_request", UNSCORED, reason)
    return _last(reply.prompt_logprobs, num_tokens)


def _messages(text: str, answer: str, image: str | None) -> list[dict[str, Any]]:
    question: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        question.insert(0, {"type": "image_url", "image_url": {"url": image}})
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _last(positions: list[Any], num_tokens: int) -> dict[str, Any]:
    if num_tokens < 1 or num_tokens >= len(positions):
        raise Refusal(
            400, "invalid_request", f"num_tokens {num_tokens} is not within the prompt of {len(positions)} tokens"
        )
    # With prompt_logprobs=0 each position holds the prompt's own token and no other.
    tokens = [next(iter(position.items())) for position in positions[-num_tokens:]]
    logprobs = [float(entry.logprob) for _, entry in tokens]
    if not all(map(math.isfinite, logprobs)):
        raise Refusal(502, "engine_fault", "the engine scored the probe with NaN or Inf; does it serve the model well?")
    return {"token_ids": [int(token) for token, _ in tokens], "logprobs": logprobs}
