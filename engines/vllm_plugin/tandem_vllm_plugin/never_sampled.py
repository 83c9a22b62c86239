"""Tokens that no request may sample, whatever it asks for: those that stand for image features.

A model that samples one makes a prompt for which there is no image, and the learner can't read its own trajectory.
Imported by vLLM where it samples (`--logits-processors`), and nowhere else. vLLM has two model runners, each with an
interface of its own; it takes the first one where the second knows no processors of others.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondLogitsProcessor
except ImportError:  # a vLLM whose second runner has no such interface
    SecondLogitsProcessor = object

NEVER_SAMPLED_VARIABLE = "TANDEM_NEVER_SAMPLED"


class NeverSampled(LogitsProcessor, SecondLogitsProcessor):  # type: ignore[misc]
    """Sets the logits of the tokens that the environment variable names (a JSON list) to minus infinity.

    Runs after vLLM's own `logit_bias`, which so can't bring one back. Tokens that the model's tokenizer does not know
    are skipped.
    """

    def __init__(self, vllm_config: Any, place: Any, is_pin_memory: bool = False) -> None:
        """`place` is the device, or the second runner's state of requests, which names it."""
        device = getattr(place, "device", place)
        self._ids = torch.tensor(_ids(vllm_config.model_config), dtype=torch.int64, device=device)

    def apply(self, logits: torch.Tensor, context: Any = None) -> torch.Tensor:
        """`logits`: (num_rows, vocabulary); changed in place."""
        return logits.index_fill_(1, self._ids, float("-inf"))

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """Nothing is kept of single requests."""


def _ids(model_config: Any) -> list[int]:
    from vllm.tokenizers import cached_tokenizer_from_config

    vocabulary = cached_tokenizer_from_config(model_config).get_vocab()
    known = (vocabulary.get(token) for token in json.loads(os.environ[NEVER_SAMPLED_VARIABLE]))
    return sorted(token_id for token_id in known if token_id is not None and token_id < model_config.get_vocab_size())
