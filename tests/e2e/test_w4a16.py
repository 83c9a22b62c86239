"""Real vLLM reads the W4A16 copy that we write: it says what the numbers in it say in transformers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from dequantized import dequantize
from prompts import Prompt, ask, client_of
from stack import WEIGHTS

from engines.config import EngineConfig
from engines.vllm import VllmEngine
from learners.toy.easy_vqa import dev
from learners.toy.quantize import quantize
from learners.toy.schemes import W4A16

CPU_FLAGS = Path("/proc/cpuinfo")
HAS_OPERATOR = CPU_FLAGS.exists() and "avx512f" in CPU_FLAGS.read_text()
MAX_MEAN_LOGPROB_ERROR = 0.01
"""Of bfloat16, in which the operator computes; a wrong order of the packed numbers gives some whole nats."""

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not HAS_OPERATOR, reason="vLLM's CPU build has no 4-bit operator on a CPU without AVX-512"),
]


async def test_an_engine_on_the_copy_agrees_with_transformers_on_its_numbers(tmp_path: Path) -> None:
    from reference import Reference

    copy, plain = tmp_path / "w4a16", tmp_path / "plain"
    quantize(WEIGHTS / "base", copy, W4A16)
    dequantize(copy, plain)
    prompts = [Prompt(row.text, (row.image_path,)) for row in dev(24)]
    engine = VllmEngine("small", EngineConfig(model=str(copy), dtype="bfloat16"), tmp_path)
    try:
        await engine.start()
        async with client_of(engine.endpoint) as client:
            answers = await asyncio.gather(*(ask(client, engine.base, prompt) for prompt in prompts))
    finally:
        await engine.stop()
    reference = Reference(plain)
    errors = [
        abs(ours - theirs)
        for prompt, answer in zip(prompts, answers, strict=True)
        for ours, theirs in zip(answer.logprobs, reference.logprobs(prompt, answer.token_ids), strict=True)
    ]
    assert np.mean(errors) <= MAX_MEAN_LOGPROB_ERROR
