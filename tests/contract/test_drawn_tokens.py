"""What an engine may sample (no image placeholders), and its log-probabilities. Named to run before it is killed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from chatting import ask, picture, request
from subjects import Subject

from engines.profiles import PROFILES
from engines.served import ServedEngine

pytestmark = [pytest.mark.timeout(300), pytest.mark.vllm]

BASE = "small@0"
QUESTION = "what color is the shape?"
TOP = 5


@pytest.fixture(autouse=True)
def only_real_engines(kind: str) -> None:
    if kind == "fake":
        pytest.skip("the fake samples from no distribution")


@pytest.fixture
def placeholders(model: Path, subject: Subject) -> dict[int, str]:
    added = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    tokens = {token["id"]: token["content"] for token in added}
    return {number: text for number, text in tokens.items() if text in PROFILES[subject.family].vision_tokens}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_placeholder_is_never_sampled_however_much_it_is_favoured(
    engine: ServedEngine, placeholders: dict[int, str], temperature: float
) -> None:
    assert placeholders
    bias = {str(number): 100.0 for number in placeholders}
    said = await ask(
        engine.endpoint,
        request(
            BASE, QUESTION, picture("red"), temperature=temperature, seed=1, logit_bias=bias, top_logprobs=TOP,
            return_token_ids=True, ignore_eos=True, max_tokens=16,
        ),
    )  # fmt: skip
    choice = said.body["choices"][0]
    assert len(choice["token_ids"]) == 16
    assert not set(choice["token_ids"]) & set(placeholders)
    named = {top["token"] for token in choice["logprobs"]["content"] for top in token["top_logprobs"]}
    assert named
    assert not named & set(placeholders.values())


async def test_another_token_that_is_favoured_is_sampled(engine: ServedEngine) -> None:
    plain = await ask(engine.endpoint, request(BASE, QUESTION, return_token_ids=True))
    number = plain.body["choices"][0]["token_ids"][0]
    body = request(BASE, QUESTION, logit_bias={str(number): 100.0}, return_token_ids=True, ignore_eos=True)
    said = await ask(engine.endpoint, body)
    assert set(said.body["choices"][0]["token_ids"]) == {number}


async def test_logprobs_are_of_the_distribution_that_was_sampled_from(engine: ServedEngine) -> None:
    bodies = [
        request(BASE, QUESTION, temperature=temperature, seed=3, max_tokens=1, top_logprobs=TOP)
        for temperature in (1.0, 0.5)
    ]
    tops = [(await ask(engine.endpoint, body)).body["choices"][0]["logprobs"]["content"][0] for body in bodies]
    whole, sharp = ({top["token"]: top["logprob"] for top in one["top_logprobs"]} for one in tops)
    # Only at temperature 0.5 are differences of log-probabilities twice as large.
    (first, *others) = [token for token in whole if token in sharp and whole[token] > -20]
    assert others
    for token in others:
        assert sharp[first] - sharp[token] == pytest.approx(2 * (whole[first] - whole[token]), abs=1e-3)


async def test_what_top_k_leaves_sums_to_one(engine: ServedEngine, kind: str) -> None:
    if kind == "sglang":
        pytest.skip("SGLang's log-probabilities are those before top-k and top-p")
    body = request(BASE, QUESTION, temperature=1.5, seed=3, max_tokens=1, top_logprobs=TOP, top_k=3)
    (token,) = (await ask(engine.endpoint, body)).body["choices"][0]["logprobs"]["content"]
    kept = [top["logprob"] for top in token["top_logprobs"] if top["logprob"] > -1000]
    assert len(kept) == 3
    assert sum(map(math.exp, kept)) == pytest.approx(1.0, abs=1e-4)
