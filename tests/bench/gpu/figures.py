"""The figures that are taken on a GPU: each one a command with a time limit of its own."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Figure:
    """`command` is run in the project's root. `result` is the file in bench-results/ that it writes, if any."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    result: str = ""


def _bench(name: str, limit_s: float, file: str, *arguments: str) -> Figure:
    return Figure(name, (sys.executable, f"tests/bench/{file}.py", *arguments), limit_s, f"{name}.json")


def _guest(name: str, limit_s: float, *arguments: str) -> Figure:
    picture = f"bench-results/{name}.png"
    return _bench(name, limit_s, "bench_guest", "--name", name, "--picture", picture, *arguments)


def _quantized(name: str, *arguments: str) -> Figure:
    """Two lots of runs at most, three side by side."""
    words = ("--device", "cuda", "--name", name, "--at-once", "3", "--limit-s", "250")
    return _bench(name, 560.0, "bench_quantized", *words, *arguments)


_TESTS = (sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu/test_grpo_on_gpu.py", "--timeout", "500")
_SGLANG_LOOP = (sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu/test_loop_on_sglang.py", "-s")

_ON_CARD = ("--device", "cuda", "--learner-threads", "4")

FIGURES = MappingProxyType(
    {
        figure.name: figure
        for figure in (
            Figure("tests", _TESTS, 560.0),
            Figure("sglang-loop", _SGLANG_LOOP, 450.0),
            _guest(
                "guest", 590.0, *_ON_CARD, "--phase-s", "30", "--off-s", "20", "--factors", "1.15", "1.5", "uncapped"
            ),
            _guest(
                "guest-limit",
                590.0,
                *_ON_CARD,
                "--phase-s",
                "60",
                "--off-s",
                "30",
                "--factors",
                "1.15",
                "--rounds",
                "2",
            ),
            replace(_bench("trl", 590.0, "bench_trl", "--device", "cuda"), result="trl-cuda.json"),
            _quantized("quantized"),
            _quantized("quantized-w4a16", "--schemes", "unquantized", "w4a16"),
            _quantized("quantized-fp8", "--schemes", "fp8"),
            _bench("export-served", 560.0, "bench_export_served", "--at-once", "3"),
            _bench("swap-2b", 560.0, "bench_swap", "--model", "2b", "--device", "cuda", "--say-times"),
        )
    }
)
