"""What SGLang's HTTP does not tell: its tokenizer, the model's depth, and how many requests it counts on an adapter."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

SETTLE_TIMEOUT_S = 1.0
_log = logging.getLogger("tandem_sglang_plugin")


class Inside(Protocol):
    """The seam between the gate and SGLang's objects."""

    @property
    def num_layers(self) -> int:
        """Decoder layers of the language model."""

    @property
    def is_seeded(self) -> bool:
        """Whether a request's seed has an effect."""

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The conversation by the model's own chat template, without a prompt for an answer."""

    def ids_of(self, tokens: tuple[str, ...]) -> tuple[int, ...]:
        """Their ids; tokens that the tokenizer does not know are skipped."""

    async def settle(self, adapter: str) -> None:
        """Nobody uses this adapter any more: makes SGLang believe it."""


class SglangInside:
    """Of the server in this process."""

    @property
    def _manager(self) -> Any:
        from sglang.srt.entrypoints.http_server import get_global_state

        return get_global_state().tokenizer_manager

    @property
    def num_layers(self) -> int:
        return int(self._manager.model_config.num_hidden_layers)

    @property
    def is_seeded(self) -> bool:
        return bool(self._manager.server_args.enable_deterministic_inference)

    def render(self, messages: list[dict[str, Any]]) -> str:
        template = self._manager.tokenizer.apply_chat_template
        return str(template(messages, tokenize=False, add_generation_prompt=False))

    def ids_of(self, tokens: tuple[str, ...]) -> tuple[int, ...]:
        vocabulary = self._manager.tokenizer.get_vocab()
        size = int(self._manager.model_config.vocab_size)
        return tuple(sorted(vocabulary[token] for token in tokens if vocabulary.get(token, size) < size))

    async def settle(self, adapter: str) -> None:
        """SGLang 0.5.17 counts who uses an adapter, and its unload waits for none. It does not count down for a request
        that it refuses after having counted it (too long, a bad image), nor for one that is aborted while it waits:
        the unload, and every load and unload after it, would wait for ever. Nothing public tells the count."""
        registry = self._manager.lora_registry
        known = registry.get_all_adapters().get(adapter)
        if known is None:
            return
        counter = registry._counters[known.lora_id]
        try:
            await asyncio.wait_for(counter.wait_for(lambda count: count <= 0), SETTLE_TIMEOUT_S)
        except TimeoutError:
            _log.warning("%s: SGLang counts %d requests that have ended", adapter, counter.value())
            for _ in range(counter.value()):
                await registry.release(known.lora_id)
