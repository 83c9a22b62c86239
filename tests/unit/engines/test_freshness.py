"""A version is told from the one before by all tokens together, and only where the noise lets it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest

from engines.adapter import ProbeRecord
from engines.errors import AdapterRefused
from engines.freshness import FreshnessWatch
from engines.types import ProbeScore

NUM_PROMPTS = 16
STEP = 0.02
NOISE = 0.005
CHANCE = random.Random(11)
BEFORE = tuple(CHANCE.uniform(-0.3, 0.3) for _ in range(NUM_PROMPTS))
MOVES = tuple(CHANCE.choice((-STEP, STEP)) for _ in range(NUM_PROMPTS))
THESE = tuple(value + move for value, move in zip(BEFORE, MOVES, strict=True))


def records(changes: Sequence[float]) -> list[ProbeRecord]:
    """Of each prompt one uncertain token, which the adapter changes so much, and one that stays certain."""
    return [
        ProbeRecord(
            text="?",
            answer="teal",
            num_tokens=2,
            token_ids=(1, 2),
            base_logprobs=(-1.6, 0.0),
            adapter_logprobs=(-1.6 + change, 0.0),
        )
        for change in changes
    ]


def scores(changes: Sequence[float]) -> list[ProbeScore]:
    return [ProbeScore((1, 2), (-1.4 + change, 0.0)) for change in changes]


def check(
    watch: FreshnessWatch,
    served: Sequence[float],
    these: Sequence[float] = THESE,
    before: Sequence[float] = BEFORE,
) -> None:
    watch.check(records(these), records(before), scores([0.0] * len(served)), scores(served))


def num_until_found(watch: FreshnessWatch, passes: Iterable[Sequence[float]]) -> int:
    for number, served in enumerate(passes, start=1):
        try:
            check(watch, served)
        except AdapterRefused:
            return number
    raise AssertionError("never found")


def noisy(changes: Sequence[float], noise: float, chance: random.Random) -> list[float]:
    return [value + chance.gauss(0, noise) for value in changes]


def test_the_weights_before_are_found_under_noise_and_these_are_not_taken_for_them() -> None:
    chance = random.Random(5)
    honest = FreshnessWatch()
    for _ in range(200):
        check(honest, noisy(THESE, NOISE, chance))
        with pytest.raises(AdapterRefused, match="the weights before these"):
            check(FreshnessWatch(), noisy(BEFORE, NOISE, chance))


def test_many_good_steps_do_not_make_up_for_bad_ones() -> None:
    chance, watch = random.Random(8), FreshnessWatch()
    for _ in range(200):
        check(watch, noisy(THESE, STEP, chance))
    assert num_until_found(watch, (noisy(BEFORE, STEP / 2, chance) for _ in range(10))) <= 5


def test_where_noise_is_as_large_as_a_step_it_takes_a_few_steps() -> None:
    chance, nums = random.Random(6), []
    for _ in range(50):
        nums.append(num_until_found(FreshnessWatch(), (noisy(BEFORE, STEP, chance) for _ in range(100))))
    assert 1 < max(nums) < 30


def test_what_noise_covers_is_no_ground_to_refuse() -> None:
    chance, watch = random.Random(6), FreshnessWatch()
    for _ in range(1000):
        check(watch, noisy(THESE, 10 * STEP, chance))


def test_a_step_that_is_clearly_served_clears_of_suspicion() -> None:
    chance, watch = random.Random(7), FreshnessWatch()
    for _ in range(100):
        check(watch, noisy(BEFORE, 1.5 * STEP, chance))
        check(watch, THESE)


def test_a_single_token_that_lies_nearer_to_the_weights_before_proves_nothing() -> None:
    nearer = BEFORE[0] + 0.2 * MOVES[0]
    check(FreshnessWatch(), [nearer], these=THESE[:1], before=BEFORE[:1])


def test_an_engine_that_serves_exactly_the_weights_before_is_found_however_little_they_differ() -> None:
    with pytest.raises(AdapterRefused, match="the weights before these"):
        check(FreshnessWatch(), BEFORE, these=[BEFORE[0] + 1e-4, *BEFORE[1:]])


def test_a_step_that_changed_nothing_is_served_by_either() -> None:
    check(FreshnessWatch(), noisy(BEFORE, NOISE, random.Random(7)), these=BEFORE)
