"""Which of vLLM's arguments are Tandem's own: `[engines.NAME].args` may not set them."""

from __future__ import annotations

from collections.abc import Iterable

from engines.flags import refuse_owned

OWNED_ARGS = frozenset(
    "model model-tag served-model-name config host port uds api-key middleware root-path worker-extension-cls "
    "uvicorn-log-level disable-uvicorn-access-log enable-lora max-loras max-cpu-loras max-lora-rank "
    "lora-target-modules lora-modules dtype max-model-len quantization limit-mm-per-prompt generation-config "
    "enable-prefix-caching enable-prompt-tokens-details chat-template chat-template-content-format "
    "allowed-local-media-path allowed-media-domains tensor-parallel-size logits-processors logprobs-mode "
    "scheduling-policy enable-chunked-prefill".split()
)
"""What our command line writes, what another key of the section decides, and what opens another door."""


def check_args(keys: Iterable[str]) -> None:
    """Raises `ValueError` naming the first key that is no flag, or sets an owned argument in any spelling."""
    refuse_owned(keys, OWNED_ARGS)
