"""Careless labels: which words are wrong, how often, and in what mixture."""

from collections import Counter

import numpy as np

from learners.toy.draws import CAPTION_PROMPTS, careless_answer, draw, strata
from learners.toy.easy_vqa import Kind, Split, captions, questions

ROWS = questions(Split.DEV)
STRATA = strata(ROWS, tuple(captions(ROWS)))
LABELLED = [row for stratum in STRATA for row in stratum.rows]


def test_careless_people_misname_four_colours_and_overlook_the_no() -> None:
    wrong = {row.answer for row in ROWS if row.kind is Kind.COLOUR and careless_answer(row) != row.answer}
    assert wrong == {"teal", "gray", "brown", "yellow"}
    for row in ROWS:
        assert (careless_answer(row) != row.answer) is (row.kind is Kind.NEGATED or row.answer in wrong)


def test_draws_follow_the_shares() -> None:
    assert abs(sum(stratum.share for stratum in STRATA) - 1) < 1e-9
    drawn = draw(STRATA, 20_000, np.random.default_rng(0))
    is_caption = Counter(LABELLED[row].text in CAPTION_PROMPTS for row in drawn.rows)
    assert abs(is_caption[True] / 20_000 - 0.25) < 0.02
    assert abs(drawn.careless.mean() - 0.8) < 0.02
    assert abs(drawn.mirrored.mean() - 0.5) < 0.02


def test_carelessness_is_drawn_afresh_for_the_same_row() -> None:
    drawn = draw(STRATA, 200_000, np.random.default_rng(0))
    row = Counter(drawn.rows.tolist()).most_common(1)[0][0]
    assert set(drawn.careless[drawn.rows == row].tolist()) == {True, False}


def test_the_same_seed_draws_the_same_batch() -> None:
    one, other = (draw(STRATA, 64, np.random.default_rng(7)) for _ in range(2))
    assert (one.rows == other.rows).all()
    assert (one.careless == other.careless).all()
