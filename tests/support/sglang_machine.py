"""Where SGLang is on the machine that runs the tests, and the arguments that its build there needs."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

SITE_VARIABLE = "TANDEM_SGLANG_PYTHONPATH"
ARGS_VARIABLE = "TANDEM_SGLANG_ARGS"
KERNELS: dict[str, Any] = {
    "attention-backend": "triton",
    "mm-attention-backend": "triton_attn",
    "sampling-backend": "pytorch",
    "mem-fraction-static": 0.3,
    "cuda-graph-backend-decode": "disabled",
    "cuda-graph-backend-prefill": "disabled",
}
"""Those that need no FlashInfer and no FlashAttention, and start soonest."""


def site() -> str:
    """The folder with SGLang's packages; skips the test where the environment names none."""
    path = os.environ.get(SITE_VARIABLE, "")
    if not path:
        pytest.skip(f"{SITE_VARIABLE} does not name a folder with SGLang's packages")
    return path


def environment(site: str) -> dict[str, str]:
    return {
        "PYTHONPATH": site,
        "SGLANG_IS_FLASHINFER_AVAILABLE": "false",
        "TVM_FFI_CACHE_DIR": f"{site}/tvm-ffi-cache",
    }


def arguments() -> dict[str, Any]:
    """With deterministic inference, without which seeds have no effect; the variable (JSON) wins."""
    own = json.loads(os.environ.get(ARGS_VARIABLE, "{}"))
    return {**KERNELS, "enable-deterministic-inference": True, **own}
