"""Real vLLM says what transformers says: of the base, of an adapter, and of one swapped in under a warm cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytest_asyncio
from evidence import Supports
from prompts import MAX_TOKENS, Answer, Prompt, ask, client_of
from safetensors.numpy import load_file, save_file
from support_rows import Aspect
from toys import TOYS, Toy

from engines.config import EngineConfig
from engines.served import ServedEngine
from engines.types import AdapterRef, VersionName
from engines.vllm import VllmEngine
from learners.toy.easy_vqa import dev

if TYPE_CHECKING:
    from reference import Reference

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

MIN_PROMPT_TOKENS = 300
CACHE_BLOCK_TOKENS = 128  # vLLM's on a CPU
MAX_LOGPROB_ERROR = 0.002
MIN_EFFECT = 0.05
MAX_MEAN_LOGPROB_ERROR_FP8 = 0.01
MAX_ERROR_SHARE_FP8 = 0.05
"""Of the adapter's effect: what rounding costs depends on how sure a model is of its answers."""
MAX_SAME_ENGINE_ERROR = 1e-4
OLD, NEW = VersionName("vqa", 1), VersionName("vqa", 2)

QUESTIONS = dev(36)
ONE_IMAGE = tuple(Prompt(row.text, (row.image_path,)) for row in QUESTIONS)
TWO_IMAGES = tuple(
    Prompt(row.text, (row.image_path, other.image_path))
    for row, other in zip(QUESTIONS[:12], QUESTIONS[12:24], strict=True)
)
TEXT_ONLY = tuple(Prompt(text) for text in sorted({row.text for row in QUESTIONS})[:12])
LONG = Prompt("is there a red circle in the image? " * 40, (QUESTIONS[0].image_path,))


@pytest.fixture(scope="module", params=["qwen3_vl", pytest.param("internvl", marks=pytest.mark.slow)])
def toy(request: pytest.FixtureRequest) -> Toy:
    return TOYS[request.param]


@pytest.fixture(scope="module")
def trained_adapter(toy: Toy, trained_on: Callable[[Path], Path]) -> Path:
    """By our own learner."""
    return trained_on(toy.base)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def plain(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedEngine]:
    async with started("plain", toy.base, tmp_path_factory.mktemp("parity")) as engine:
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fp8(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedEngine]:
    async with started("fp8", toy.fp8, tmp_path_factory.mktemp("parity")) as engine:
        yield engine


@asynccontextmanager
async def started(name: str, model: Path, log_dir: Path) -> AsyncIterator[ServedEngine]:
    engine = VllmEngine(name, EngineConfig(model=str(model), dtype="float32"), log_dir)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@pytest.fixture(scope="module")
def random_adapter(trained_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained adapter with its weights replaced by noise, loud enough to change every answer."""
    directory = tmp_path_factory.mktemp("random-adapter")
    rng = np.random.default_rng(0)
    weights = load_file(trained_adapter / "adapter_model.safetensors")
    noise = {name: rng.normal(0, 0.3, value.shape).astype(np.float32) for name, value in weights.items()}
    save_file(noise, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text((trained_adapter / "adapter_config.json").read_text())
    return directory


@pytest.fixture(scope="module")
def base_reference(toy: Toy) -> Reference:
    from reference import Reference

    return Reference(toy.base)


@pytest.fixture(scope="module")
def merged_reference(toy: Toy, trained_adapter: Path) -> Reference:
    from reference import Reference

    return Reference(toy.base, trained_adapter)


async def test_a_long_prompt_after_a_swap_gives_what_a_cold_cache_gives(
    plain: ServedEngine, random_adapter: Path, trained_adapter: Path, supports: Supports
) -> None:
    """A salt of its own keeps an answer from all that is in the cache, whatever the cache takes for the same prompt."""
    supports(plain.config, Aspect.SWAP)
    old_ref, new_ref = (AdapterRef(OLD, OLD.number, random_adapter), AdapterRef(NEW, NEW.number, trained_adapter))
    await plain.load_adapter(new_ref)
    expected = await ask_at_length(plain, NEW, cache_salt="cold")
    await plain.drop_adapter(new_ref)

    await plain.load_adapter(old_ref)
    old = [await ask_at_length(plain, OLD) for _ in range(2)]
    await plain.load_adapter(new_ref)
    new = [await ask_at_length(plain, NEW)]
    await plain.drop_adapter(old_ref)
    new += [await ask_at_length(plain, NEW) for _ in range(2)]
    await plain.drop_adapter(new_ref)

    assert len(expected.prompt_ids) >= MIN_PROMPT_TOKENS
    assert expected.num_cached == old[0].num_cached == new[0].num_cached == 0
    assert min(answer.num_cached for answer in (old[1], *new[1:])) >= CACHE_BLOCK_TOKENS
    assert expected.token_ids != old[1].token_ids == old[0].token_ids  # else any version would pass
    for answer in new:
        assert answer.token_ids == expected.token_ids
        assert error(expected, answer) <= MAX_SAME_ENGINE_ERROR


async def test_an_unquantized_engine_agrees_with_transformers_greedy_generate(
    plain: ServedEngine, base_reference: Reference, supports: Supports
) -> None:
    supports(plain.config, Aspect.SERVE)
    prompts = (*TEXT_ONLY, *ONE_IMAGE[:12], *TWO_IMAGES)
    answers = await answers_of(plain, plain.base, prompts)
    assert [answer.prompt_ids for answer in answers] == [base_reference.prompt_ids(prompt) for prompt in prompts]
    assert [answer.token_ids for answer in answers] == [base_reference.generate(prompt) for prompt in prompts]


async def test_the_adapter_served_is_the_adapter_merged(
    plain: ServedEngine,
    trained_adapter: Path,
    base_reference: Reference,
    merged_reference: Reference,
    supports: Supports,
) -> None:
    supports(plain.config, Aspect.ADAPTER)
    supports(plain.config, Aspect.SFT)
    prompts = (*TEXT_ONLY, *ONE_IMAGE, *TWO_IMAGES)
    answers = await answers_of_adapter(plain, trained_adapter, prompts)
    assert [answer.token_ids for answer in answers] == [merged_reference.generate(prompt) for prompt in prompts]
    assert max(errors(merged_reference, prompts, answers)) <= MAX_LOGPROB_ERROR
    assert max(errors(base_reference, prompts, answers)) > 100 * MAX_LOGPROB_ERROR  # else the bare base would pass


@pytest.mark.slow
async def test_the_adapter_on_an_fp8_base_is_close_to_the_adapter_merged(
    fp8: ServedEngine, trained_adapter: Path, base_reference: Reference, merged_reference: Reference, supports: Supports
) -> None:
    supports(fp8.config, Aspect.ADAPTER)
    supports(fp8.config, Aspect.SFT)
    prompts = (*TEXT_ONLY, *ONE_IMAGE, *TWO_IMAGES)
    answers = await answers_of_adapter(fp8, trained_adapter, prompts)
    effect = float(np.mean(errors(base_reference, prompts, answers)))
    assert effect > MIN_EFFECT  # else the bare base would pass
    error = np.mean(errors(merged_reference, prompts, answers))
    assert error <= min(MAX_MEAN_LOGPROB_ERROR_FP8, MAX_ERROR_SHARE_FP8 * effect)


async def ask_at_length(engine: ServedEngine, version: VersionName, **extra: str) -> Answer:
    async with client_of(engine.endpoint) as client:
        return await ask(client, version, LONG, min_tokens=MAX_TOKENS, **extra)


async def answers_of_adapter(engine: ServedEngine, adapter: Path, prompts: Sequence[Prompt]) -> list[Answer]:
    """Loads the adapter, asks everything at once, and drops it."""
    ref = AdapterRef(NEW, NEW.number, adapter)
    await engine.load_adapter(ref)
    try:
        return await answers_of(engine, NEW, prompts)
    finally:
        await engine.drop_adapter(ref)


async def answers_of(engine: ServedEngine, version: VersionName, prompts: Sequence[Prompt]) -> list[Answer]:
    async with client_of(engine.endpoint) as client:
        return await asyncio.gather(*(ask(client, version, prompt) for prompt in prompts))


def error(one: Answer, other: Answer) -> float:
    """The largest difference of two answers' log-probabilities, token by token."""
    return float(np.abs(np.subtract(one.logprobs, other.logprobs)).max())


def errors(reference: Reference, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[float]:
    """How far each sampled token's log-probability is from the reference's."""
    return [
        abs(ours - theirs)
        for prompt, answer in zip(prompts, answers, strict=True)
        for ours, theirs in zip(answer.logprobs, reference.logprobs(prompt, answer.token_ids), strict=True)
    ]
