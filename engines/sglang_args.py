"""Which of SGLang's arguments are Tandem's own: `[engines.NAME].args` may not set them."""

from __future__ import annotations

from collections.abc import Iterable

from engines.flags import refuse_owned

OWNED_ARGS = frozenset(
    "model model-path served-model-name config host port grpc-port grpc-mode smg-grpc-mode enable-http2 "
    "ssl-keyfile ssl-certfile api-key admin-api-key fastapi-root-path tokenizer-worker-num skip-tokenizer-init "
    "skip-server-warmup enable-lora max-loras-per-batch max-loaded-loras max-lora-rank lora-target-modules "
    "lora-paths lora-strict-loading dtype context-length allow-auto-truncate quantization limit-mm-data-per-request "
    "sampling-defaults preferred-sampling-params chat-template hf-chat-template-name enable-cache-report "
    "tp-size tensor-parallel-size dp-size data-parallel-size pp-size pipeline-parallel-size nnodes node-rank use-ray "
    "encoder-only disaggregation-mode tool-server enable-custom-logit-processor enable-priority-scheduling "
    "schedule-low-priority-values-first default-priority-value disable-priority-preemption "
    "incremental-streaming-output sidecar".split()
)
"""What our command line writes (but `log-level`), what another key of the section decides, what changes how the model
is asked or answers, and what opens another door."""


def check_args(keys: Iterable[str]) -> None:
    """Raises `ValueError` naming the first key that is no flag, or sets an owned argument in any spelling."""
    refuse_owned(keys, OWNED_ARGS)
