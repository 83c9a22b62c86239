"""easy-VQA: splits that share no image, balanced sets, and captions that follow from answers."""

from collections import Counter
from itertools import combinations

import pytest

from engines.errors import BadRequest
from learners.toy.easy_vqa import Kind, Split, captions, corrections, dev, doubtful, held_out, kind_of, questions


def image_names(split: Split) -> set[str]:
    return {str(row.image_path) for row in questions(split)}


def test_no_two_splits_share_an_image() -> None:
    for one, other in combinations(Split, 2):
        assert not image_names(one) & image_names(other)


def test_splits_hold_every_question_of_the_data_set() -> None:
    assert {split: len(image_names(split)) for split in Split} == {
        Split.BASE: 3_000,
        Split.CORRECTIONS: 600,
        Split.DEV: 400,
        Split.HELD_OUT: 1_000,
    }
    assert sum(len(questions(split)) for split in Split) == 38_575 + 9_673


@pytest.mark.parametrize("rows", [held_out(), dev()], ids=["held-out", "dev"])
def test_scored_sets_are_balanced(rows: tuple) -> None:
    assert Counter(row.kind for row in rows) == {
        Kind.COLOUR: 166,
        Kind.SHAPE: 166,
        Kind.PLAIN: 84,
        Kind.NEGATED: 84,
    }
    yes = Counter(row.kind for row in rows if row.answer == "yes")
    assert yes == {Kind.PLAIN: 42, Kind.NEGATED: 42}
    assert len({row.key for row in rows}) == 500


def test_held_out_comes_from_the_test_images_only() -> None:
    assert {row.image_path.parent.parent.name for row in held_out()} == {"test"}
    assert {row.image_path.parent.parent.name for row in (*dev(), *corrections(0, 400))} == {"train"}


def test_corrections_are_as_many_of_each_kind() -> None:
    assert set(Counter(row.kind for row in corrections(3, 400)).values()) == {100}
    assert sorted(Counter(row.kind for row in corrections(3, 402)).values()) == [100, 100, 101, 101]


def test_half_of_the_doubtful_are_negated_and_yes_is_as_frequent_as_no() -> None:
    rows = doubtful(3, 160)
    assert Counter(row.kind for row in rows) == {Kind.NEGATED: 80, Kind.PLAIN: 40, Kind.COLOUR: 20, Kind.SHAPE: 20}
    assert Counter(row.answer for row in rows if row.kind is Kind.NEGATED) == {"yes": 40, "no": 40}
    assert {row.split for row in rows} == {Split.CORRECTIONS}


def test_the_same_seed_draws_the_same_corrections_and_another_others() -> None:
    assert corrections(1, 100) == corrections(1, 100)
    assert corrections(1, 100) != corrections(2, 100)


def test_more_corrections_than_there_are_questions_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"only \d+ plain questions|only \d+ colour questions"):
        corrections(0, 100_000)


def test_kind_of_a_question() -> None:
    assert kind_of("what is the teal shape?", "circle") is Kind.SHAPE
    assert kind_of("what color is the circle?", "teal") is Kind.COLOUR
    assert kind_of("is there a circle?", "no") is Kind.PLAIN
    assert kind_of("does the image not contain a circle?", "no") is Kind.NEGATED
    assert kind_of("is no circle present?", "yes") is Kind.NEGATED


def test_captions_agree_with_every_answer_about_their_image() -> None:
    rows = questions(Split.DEV)
    by_image = {caption.image_id: caption for caption in captions(rows)}
    assert len(by_image) > 300
    for row in rows:
        caption = by_image.get(row.image_id)
        if caption is not None and row.kind is Kind.COLOUR:
            assert row.answer == caption.colour
        if caption is not None and row.kind is Kind.SHAPE:
            assert row.answer == caption.shape
