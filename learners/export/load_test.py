"""The load test: an engine loads the export, answers questions greedily, and says the log-probabilities of answers.

A machine that lacks the kernels of a scheme is no failure of the export: the reason is reported instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.backends import build_engine
from engines.config import EngineConfig
from engines.errors import ConfigError
from engines.types import Endpoint, ProbePrompt, ProbeScore, VersionName
from learners.config.export import LoadTest
from rollout.chat import Question
from rollout.client import EngineClient
from rollout.messages import Message
from rollout.types import Target

NAME = "export"
REQUEST_TIMEOUT_S = 120.0
MAX_AT_ONCE = 16
MAX_NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its right answer."""

    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Served:
    """What the engine said: the share of questions that it answered right, and the probes' scores."""

    num_questions: int
    exact_match: float | None
    scores: tuple[ProbeScore, ...]


@dataclass(frozen=True, slots=True)
class NotServed:
    reason: str


def run_load_test(
    model_dir: Path, test: LoadTest, asked: Sequence[Asked], probes: Sequence[ProbePrompt], log_dir: Path
) -> Served | NotServed:
    """`load_test`, for who has no event loop."""
    return asyncio.run(load_test(model_dir, test, asked, probes, log_dir))


async def load_test(
    model_dir: Path, test: LoadTest, asked: Sequence[Asked], probes: Sequence[ProbePrompt], log_dir: Path
) -> Served | NotServed:
    """Starts an engine of our own for `model_dir`, asks, and ends it. Raises `EngineDown` if it does not come up."""
    config = EngineConfig(
        model=str(model_dir),
        python=test.python,
        args=test.args,
        start_timeout_s=test.start_timeout_s,
        reserved_for_rollout=1,  # requests have a priority
    )
    engine = build_engine(NAME, config, log_dir)
    try:
        endpoint = await engine.start()
        right = await _ask_all(endpoint, asked)
        scores = await engine.probe(VersionName(NAME, 0), probes) if probes else ()
    except ConfigError as error:
        return NotServed(error.message)
    finally:
        await engine.stop()
    return Served(len(right), sum(right) / len(right) if right else None, tuple(scores))


async def _ask_all(endpoint: Endpoint, asked: Sequence[Asked]) -> list[bool]:
    client, room = EngineClient(REQUEST_TIMEOUT_S), asyncio.Semaphore(MAX_AT_ONCE)
    target = Target(f"{NAME}/0", endpoint)

    async def is_right(place: int, one: Asked) -> bool:
        question = Question(str(place), VersionName(NAME, 0), one.messages, 1, 0.0, MAX_NEW_TOKENS)
        async with room:
            turns = await client.ask(target, question)
        return turns[0].text == one.answer

    try:
        return list(await asyncio.gather(*(is_right(place, one) for place, one in enumerate(asked))))
    finally:
        await client.close()
