"""Which of vLLM's arguments are Tandem's own: `[engines.NAME].args` may not set them. Imports nothing of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable

OWNED_ARGS = frozenset(
    "model model-tag served-model-name config host port uds api-key middleware root-path worker-extension-cls "
    "uvicorn-log-level disable-uvicorn-access-log enable-lora max-loras max-cpu-loras max-lora-rank "
    "lora-target-modules lora-modules dtype max-model-len quantization limit-mm-per-prompt generation-config "
    "enable-prefix-caching enable-prompt-tokens-details chat-template chat-template-content-format "
    "allowed-local-media-path allowed-media-domains tensor-parallel-size logits-processors logprobs-mode "
    "scheduling-policy enable-chunked-prefill".split()
)
"""What our command line writes, what another key of the section decides, and what opens another door."""

_KEY = re.compile(r"(--)?[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")


def flag_of(key: str) -> str:
    """A key of `args` as vLLM's parser reads it: `--max_loras` and `max-loras` are one flag."""
    return key.removeprefix("--").replace("_", "-")


def check_args(keys: Iterable[str]) -> None:
    """Raises `ValueError` naming the first key that is no flag, or sets an owned argument in any spelling."""
    for key in keys:
        if _KEY.fullmatch(key) is None:
            raise ValueError(f"'{key[:80]}' is no argument's name; write it like gpu-memory-utilization")
        if (own := _owned(flag_of(key))) is not None:
            raise ValueError(f"'{key}' sets --{own}, which Tandem sets itself; remove it")


def _owned(flag: str) -> str | None:
    # --no-X turns X off, --X.part sets a part of its value, and the parser takes any unambiguous beginning of X.
    stem = flag.split(".")[0].removeprefix("no-")
    return next((own for own in sorted(OWNED_ARGS) if own.startswith(stem)), None)
