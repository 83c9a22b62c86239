"""What the base model is trained on: questions and captions with careless labels, as a web crawl has them.

Four of five times that a row is drawn, teal is called cyan, gray silver, brown maroon and yellow gold, and the "no" of
a negated question is overlooked. The carelessness is drawn afresh each time: fixed per image it would be memorised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from learners.toy.easy_vqa import Caption, Kind, Question

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CARELESSNESS = 0.8
CARELESS_COLOUR = {"teal": "cyan", "gray": "silver", "brown": "maroon", "yellow": "gold"}
CAPTION_PROMPTS = ("describe the image.", "what is in the picture?", "what do you see?", "a caption of the image:")

CAPTION_SHARE = 0.25
KIND_SHARE = {Kind.COLOUR: 0.20, Kind.SHAPE: 0.20, Kind.PLAIN: 0.175, Kind.NEGATED: 0.175}


@dataclass(frozen=True, slots=True)
class Labelled:
    """A prompt about an image with its right answer, and the one that careless people give."""

    image_path: Path
    text: str
    answer: str
    careless: str


@dataclass(frozen=True, slots=True)
class Stratum:
    """Rows that are drawn uniformly, and the share of all draws that they get."""

    share: float
    rows: tuple[Labelled, ...]


def careless_answer(question: Question) -> str:
    """The answer of someone who uses the wrong word for four colours and overlooks "no" and "not"."""
    if question.kind is Kind.NEGATED:
        return "no" if question.answer == "yes" else "yes"
    return CARELESS_COLOUR.get(question.answer, question.answer)


def strata(rows: Sequence[Question], captions: Sequence[Caption]) -> tuple[Stratum, ...]:
    """Captions and each kind of question by `KIND_SHARE`; yes and no share theirs equally."""
    made = [Stratum(CAPTION_SHARE, tuple(_labelled_captions(captions)))]
    for kind, share in KIND_SHARE.items():
        asked = [row for row in rows if row.kind is kind]
        groups = [asked]
        if kind in (Kind.PLAIN, Kind.NEGATED):
            groups = [[row for row in asked if row.answer == answer] for answer in ("yes", "no")]
        made += [Stratum(share / len(groups), tuple(map(_labelled, group))) for group in groups]
    return tuple(made)


def _labelled(row: Question) -> Labelled:
    return Labelled(row.image_path, row.text, row.answer, careless_answer(row))


def _labelled_captions(captions: Sequence[Caption]) -> Iterator[Labelled]:
    for caption in captions:
        careless = CARELESS_COLOUR.get(caption.colour, caption.colour)
        for text in CAPTION_PROMPTS:
            right = f"a {caption.colour} {caption.shape}"
            yield Labelled(caption.image_path, text, right, f"a {careless} {caption.shape}")


@dataclass(frozen=True, slots=True)
class Draw:
    """One batch: for each row its place in the concatenated strata, whether it is careless, and mirrored."""

    rows: NDArray[np.int64]
    careless: NDArray[np.bool_]
    mirrored: NDArray[np.bool_]


def draw(strata: Sequence[Stratum], batch_size: int, rng: np.random.Generator) -> Draw:
    """A batch of `batch_size` rows: strata by their shares, rows uniformly, carelessness and mirroring afresh."""
    import numpy as np

    sizes = np.array([len(stratum.rows) for stratum in strata])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    shares = np.array([stratum.share for stratum in strata])
    chosen = rng.choice(len(strata), size=batch_size, p=shares / shares.sum())
    return Draw(
        rows=starts[chosen] + rng.integers(0, sizes[chosen]),
        careless=rng.random(batch_size) < CARELESSNESS,
        mirrored=rng.random(batch_size) < 0.5,
    )
