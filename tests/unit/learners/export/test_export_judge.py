"""Perplexity and exact match are those of the model's own logits, for a quantized checkpoint too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from learners.data.collate import Encoded, Encoder, collate
from learners.data.examples import Example, Message, Picture, Text
from learners.export.judge import judge
from learners.toy.easy_vqa import held_out

WEIGHTS = Path(__file__).parents[4] / "learners" / "toy" / "weights"
NUM_ROWS = 10

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(AutoProcessor.from_pretrained(WEIGHTS / "base"))


@pytest.fixture(scope="module")
def rows(encoder: Encoder) -> list[Encoded]:
    questions = held_out(500)[:NUM_ROWS]
    prompts = [(Message("user", (Picture(row.image_path), Text(row.text))),) for row in questions]
    asked = zip(questions, prompts, strict=True)
    return [encoder.encode(Example(row.key, 1, prompt, row.answer)) for row, prompt in asked]


def scored_one_by_one(rows: Sequence[Encoded], encoder: Encoder) -> tuple[float, float]:
    """Perplexity by transformers' own loss, exact match by its own greedy generation."""
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS / "base", dtype=torch.float32).eval()
    nll, num_tokens, num_right = 0.0, 0, 0
    for row in rows:
        inputs = collate([row], encoder.pad_id)
        nll += float(model(**inputs).loss) * row.num_learned
        num_tokens += row.num_learned
        labels = inputs.pop("labels")
        prompt = len(row.prompt_ids)
        asked = {
            name: tensor[:, :prompt] if tensor.shape == labels.shape else tensor for name, tensor in inputs.items()
        }
        said = model.generate(**asked, max_new_tokens=16, do_sample=False)[0, prompt:].tolist()
        num_right += said[: row.num_learned] == list(row.answer_ids[: row.num_learned])
    return math.exp(nll / num_tokens), num_right / len(rows)


def test_one_pass_says_what_loss_and_greedy_generation_say(rows: list[Encoded], encoder: Encoder) -> None:
    quality = judge(WEIGHTS / "base", rows, encoder.pad_id)
    perplexity, exact_match = scored_one_by_one(rows, encoder)
    assert quality.num_rows == NUM_ROWS
    assert quality.perplexity == pytest.approx(perplexity, rel=1e-4)
    assert quality.exact_match == exact_match
    assert 0 < exact_match < 1


def test_a_quantized_checkpoint_is_judged_as_it_is(rows: list[Encoded], encoder: Encoder) -> None:
    unquantized, quantized = (judge(WEIGHTS / name, rows, encoder.pad_id) for name in ("base", "base-fp8"))
    assert quantized.perplexity != unquantized.perplexity
    assert quantized.perplexity == pytest.approx(unquantized.perplexity, rel=0.05)
    assert quantized.exact_match == pytest.approx(unquantized.exact_match, abs=2 / NUM_ROWS)
