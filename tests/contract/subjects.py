"""What the contract suite is asked of: a back end with a model family and a number format."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import sglang_machine

ON_GPU = {"gpu-memory-utilization": 0.2, "kv-cache-memory-bytes": 2 << 30}
"""So that several can be tested side by side on one card."""


@dataclass(frozen=True)
class Subject:
    """`scheme`: `none` is the base as it is, in the dtype that suits the device."""

    kind: str
    family: str = "qwen3_vl"
    scheme: str = "none"

    def __str__(self) -> str:
        return self.kind if self.kind == "fake" else f"{self.kind}-{self.family}-{self.scheme}"


def _on(subject: Subject, *marks: pytest.MarkDecorator) -> Any:
    of_kind = (pytest.mark.vllm,) if subject.kind == "vllm" else ()
    return pytest.param(subject, marks=(*of_kind, *marks), id=str(subject))


SUBJECTS = (
    _on(Subject("fake")),
    _on(Subject("vllm", "internvl", "fp8")),
    _on(Subject("vllm", "internvl"), pytest.mark.slow),
    _on(Subject("vllm", "qwen3_vl", "fp8"), pytest.mark.slow),
    _on(Subject("vllm", "qwen3_vl"), pytest.mark.slow),
    _on(Subject("vllm", "qwen3_vl", "w4a16"), pytest.mark.gpu),
    _on(Subject("vllm", "internvl", "w4a16"), pytest.mark.gpu),
    _on(Subject("sglang", "qwen3_vl"), pytest.mark.gpu),
    _on(Subject("sglang", "qwen3_vl", "fp8"), pytest.mark.gpu),
)
"""W4A16 needs an operator that not every CPU's build of vLLM has."""


def settings(kind: str) -> dict[str, Any]:
    """What only this back end needs."""
    if kind == "fake":
        return {"args": {"tokens-per-s": 300}}
    if kind == "vllm":
        return {"args": ON_GPU} if shutil.which("nvidia-smi") else {}
    return {
        "args": sglang_machine.arguments(),
        "env": sglang_machine.environment(sglang_machine.site()),
    }
