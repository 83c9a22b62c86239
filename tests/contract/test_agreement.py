"""What transformers computes in float32 is what an engine answers: of the bare base, and of an adapter merged.

Log-probabilities of the engine's own tokens are compared, as its rounding may turn a near tie.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from dequantized import dequantize
from peft_adapters import MakeAdapter
from prompts import Answer, Prompt, ask, client_of
from subjects import Subject
from toys import TOYS

from engines.schemes import here
from engines.served import ServedEngine
from engines.types import VersionName
from learners.toy.easy_vqa import dev

if TYPE_CHECKING:
    from reference import Reference

pytestmark = pytest.mark.timeout(300)

QUESTIONS = dev(12)
PROMPTS = (
    *(Prompt(row.text) for row in QUESTIONS[:4]),
    *(Prompt(row.text, (row.image_path,)) for row in QUESTIONS),
    Prompt(QUESTIONS[0].text, (QUESTIONS[0].image_path, QUESTIONS[1].image_path)),
)


@dataclass(frozen=True)
class Limits:
    """`base`: mean absolute log-probability by which the bare base may be off. `adapter`: share of an adapter's effect
    by which one may be."""

    base: float
    adapter: float


EXACT = Limits(base=0.001, adapter=0.002)
ROUNDED = Limits(base=0.03, adapter=0.1)
"""For activations, or weights that the reference has whole, in few bits."""


@pytest.fixture(scope="module")
def whole(subject: Subject, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that transformers reads: of four bits what they stand for, else the base before rounding."""
    if subject.kind == "fake":
        pytest.skip("the fake engine has no model")
    if subject.scheme != "w4a16":
        return TOYS[subject.family].base
    unpacked = tmp_path_factory.mktemp("whole") / "model"
    dequantize(model, unpacked)
    return unpacked


@pytest.fixture(scope="module")
def limits(subject: Subject) -> Limits:
    return EXACT if subject.scheme == "none" and here().is_cpu else ROUNDED


@pytest.fixture(scope="module")
def base_reference(whole: Path) -> Reference:
    from reference import Reference

    return Reference(whole)


async def test_the_base_reads_prompts_and_scores_answers_as_transformers_does(
    engine: ServedEngine, base_reference: Reference, limits: Limits
) -> None:
    answers = await answers_of(engine, engine.base)
    assert [answer.prompt_ids for answer in answers] == [base_reference.prompt_ids(prompt) for prompt in PROMPTS]
    assert mean_error(base_reference, answers) <= limits.base


async def test_an_adapter_scores_answers_as_transformers_does_with_it_merged(
    engine: ServedEngine, whole: Path, base_reference: Reference, limits: Limits, make_adapter: MakeAdapter
) -> None:
    from reference import Reference

    adapter = make_adapter()
    await engine.load_adapter(adapter)
    answers = await answers_of(engine, adapter.version)
    await engine.drop_adapter(adapter)
    effect = mean_error(base_reference, answers)
    assert effect > 1.0  # else the bare base would pass
    assert mean_error(Reference(whole, adapter.path), answers) / effect <= limits.adapter


async def answers_of(engine: ServedEngine, version: VersionName) -> list[Answer]:
    async with client_of(engine.endpoint) as client:
        return await asyncio.gather(*(ask(client, version, prompt) for prompt in PROMPTS))


def mean_error(reference: Reference, answers: list[Answer]) -> float:
    """How far the sampled tokens' log-probabilities are from the reference's."""
    errors = [
        abs(ours - theirs)
        for prompt, answer in zip(PROMPTS, answers, strict=True)
        for ours, theirs in zip(answer.logprobs, reference.logprobs(prompt, answer.token_ids), strict=True)
    ]
    return float(np.mean(errors))
