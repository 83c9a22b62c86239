"""easy-VQA (PyPI `easy-vqa`, MIT, by Victor Zhou): 64x64 pictures of one coloured shape, and questions about them.

Splits are by image, fixed by `SPLIT_SEED`, and disjoint:

    base         3,000 train images   the base model is trained on them
    corrections    600 train images   what users ask about and correct
    dev            400 train images   hyperparameters are chosen on them
    held-out     test images          what published figures are measured on; touched by nothing else
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from engines.errors import BadRequest, Unavailable

SPLIT_SEED = 20261124
HELD_OUT_SEED = 1
NUM_BASE_IMAGES = 3_000
NUM_CORRECTION_IMAGES = 600
NUM_HELD_OUT = 500

COLOURS = frozenset({"blue", "green", "red", "gray", "yellow", "teal", "black", "brown"})
SHAPES = frozenset({"rectangle", "circle", "triangle"})


class Kind(StrEnum):
    """What a question asks for: a colour, a shape, yes or no, or yes or no of something that is not there."""

    COLOUR = "colour"
    SHAPE = "shape"
    PLAIN = "plain"
    NEGATED = "negated"


class Split(StrEnum):
    """Which images a question is about."""

    BASE = "base"
    CORRECTIONS = "corrections"
    DEV = "dev"
    HELD_OUT = "held-out"


@dataclass(frozen=True, slots=True)
class Question:
    """One question of the data set, with its right answer."""

    image_path: Path
    image_id: int
    text: str
    answer: str
    kind: Kind
    split: Split

    @property
    def key(self) -> str:
        """Names the question: the split, the image and the text."""
        return f"{self.split.value}/{self.image_id}/{self.text}"


@dataclass(frozen=True, slots=True)
class Caption:
    """What is on a picture, as its own questions and answers give it away."""

    image_path: Path
    image_id: int
    colour: str
    shape: str


def kind_of(text: str, answer: str) -> Kind:
    """The kind of a question; one that asks for the shape of a colour counts as shape."""
    if answer in COLOURS:
        return Kind.COLOUR
    if answer in SHAPES:
        return Kind.SHAPE
    return Kind.NEGATED if {"no", "not"} & set(text.split()) else Kind.PLAIN


def data_directory() -> Path:
    """Raises `Unavailable` if the package `easy-vqa` is not installed."""
    spec = find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise Unavailable("the data set easy-VQA is not installed: run `make setup`, or `pip install easy-vqa==1.0`")
    return Path(spec.origin).resolve().parent / "data"


@cache
def split_of_train_image() -> tuple[Split, ...]:
    """The split of each of the 4,000 train images, by image id."""
    num_images = sum(1 for _ in (data_directory() / "train" / "images").glob("*.png"))
    order = list(range(num_images))
    random.Random(SPLIT_SEED).shuffle(order)
    splits = [Split.DEV] * num_images
    for place, image_id in enumerate(order[: NUM_BASE_IMAGES + NUM_CORRECTION_IMAGES]):
        splits[image_id] = Split.BASE if place < NUM_BASE_IMAGES else Split.CORRECTIONS
    return tuple(splits)


@cache
def questions(split: Split) -> tuple[Question, ...]:
    """Every question about the images of `split`, in the data set's order."""
    folder = data_directory() / ("test" if split is Split.HELD_OUT else "train")
    rows: list[tuple[str, str, int]] = json.loads((folder / "questions.json").read_text("utf-8"))
    return tuple(
        Question(folder / "images" / f"{image_id}.png", image_id, text, answer, kind_of(text, answer), split)
        for text, answer, image_id in rows
        if split is Split.HELD_OUT or split_of_train_image()[image_id] is split
    )


def captions(rows: Iterable[Question]) -> Iterator[Caption]:
    """Captions of the images whose colour and shape both follow from `rows`, by image id."""
    words: dict[int, set[str]] = defaultdict(set)
    paths: dict[int, Path] = {}
    for row in rows:
        paths[row.image_id] = row.image_path
        words[row.image_id] |= _given_away(row)
    for image_id, given in sorted(words.items()):
        colours, shapes = given & COLOURS, given & SHAPES
        if colours and shapes:
            yield Caption(paths[image_id], image_id, min(colours), min(shapes))


def _given_away(row: Question) -> set[str]:
    """The words that the question and its answer say are on the picture."""
    named = set(row.text.rstrip("?").split()) & (COLOURS | SHAPES)
    match row.kind:
        case Kind.PLAIN:
            return named if row.answer == "yes" else set()
        case Kind.NEGATED:
            return named if row.answer == "no" else set()
        case _:
            return named | {row.answer}


def dev(num: int = NUM_HELD_OUT) -> tuple[Question, ...]:
    """A balanced set to choose hyperparameters on: train images that nothing is trained on."""
    return _balanced(questions(Split.DEV), num, SPLIT_SEED)


def held_out(num: int = NUM_HELD_OUT) -> tuple[Question, ...]:
    """The balanced set of the test split that published figures are measured on.

    A first draw of this size, by `SPLIT_SEED`, was looked at while the recipe of the demo's SFT was searched for; no
    image of it is in the set.
    """
    rows = questions(Split.HELD_OUT)
    looked_at = {row.image_id for row in _balanced(rows, NUM_HELD_OUT, SPLIT_SEED)}
    return _balanced([row for row in rows if row.image_id not in looked_at], num, HELD_OUT_SEED)


def corrections(seed: int, num: int) -> tuple[Question, ...]:
    """`num` questions to ask and to correct, as many of each kind, yes and no equally often; drawn by `seed`."""
    share = num // len(Kind)
    counts = {kind: share + (place < num % len(Kind)) for place, kind in enumerate(Kind)}
    return _draw(questions(Split.CORRECTIONS), counts, seed)


def doubtful(seed: int, num: int) -> tuple[Question, ...]:
    """`num` questions about the images of corrections, most of the kinds that a model learns last from these: half
    negated, a quarter plain; yes and no equally often."""
    words = num // 8
    counts = {Kind.NEGATED: num // 2, Kind.COLOUR: words, Kind.SHAPE: words}
    return _draw(questions(Split.CORRECTIONS), {**counts, Kind.PLAIN: num - sum(counts.values())}, seed)


def _balanced(rows: Sequence[Question], num: int, seed: int) -> tuple[Question, ...]:
    """A third colour, a third shape, and the rest half plain, half negated (500: 166, 166, 84, 84)."""
    words = 2 * (num // 6)
    yes_no = num - 2 * words
    counts = {Kind.COLOUR: words, Kind.SHAPE: words, Kind.PLAIN: yes_no - yes_no // 2, Kind.NEGATED: yes_no // 2}
    return _draw(rows, counts, seed)


def _draw(rows: Sequence[Question], counts: dict[Kind, int], seed: int) -> tuple[Question, ...]:
    """Questions in random order: `counts` of each kind, without repeats. Raises `BadRequest` if there are too few."""
    rng = random.Random(seed)
    drawn: list[Question] = []
    for kind, num in counts.items():
        for answers, share in _answer_shares(kind, num):
            pool = [row for row in rows if row.kind is kind and row.answer in answers]
            if share > len(pool):
                raise BadRequest(f"only {len(pool)} {kind.value} questions are there, {share} were asked", param="num")
            drawn += rng.sample(pool, share)
    rng.shuffle(drawn)
    return tuple(drawn)


def _answer_shares(kind: Kind, num: int) -> tuple[tuple[frozenset[str], int], ...]:
    """Yes and no share a kind equally: unbalanced, "no" to every plain question would be right 80% of the time."""
    if kind in (Kind.PLAIN, Kind.NEGATED):
        return (frozenset({"yes"}), num - num // 2), (frozenset({"no"}), num // 2)
    return ((COLOURS if kind is Kind.COLOUR else SHAPES, num),)
