"""Training the toy: the schedule, and that a few steps learn and repeat."""

import pytest

from learners.toy.build import toy_tokenizer
from learners.toy.families import FAMILIES
from learners.toy.model import build_model
from learners.toy.train import Recipe, learning_rate_factor, train


def test_the_learning_rate_warms_up_stays_and_decays_to_zero() -> None:
    recipe = Recipe(num_steps=100, num_warmup_steps=10, decay_share=0.4)
    factors = [learning_rate_factor(step, recipe) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert set(factors[10:60]) == {1.0}
    assert factors[80] == pytest.approx(0.5)
    assert factors[100] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_few_steps_learn_and_the_same_seed_repeats_them(name: str) -> None:
    recipe = Recipe(num_steps=12, batch_size=16, num_warmup_steps=4)
    family = FAMILIES[name]
    tokenizer = toy_tokenizer(family)
    processor = family.build_processor(tokenizer)
    runs: list[list[float]] = []
    for _ in range(2):
        losses: list[float] = []
        train(
            build_model(family, tokenizer, 0), processor, recipe, 0, lambda _step, loss, into=losses: into.append(loss)
        )
        runs.append(losses)
    assert runs[0][-1] < runs[0][0] / 2
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)
