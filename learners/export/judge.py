"""How well a model answers: perplexity of the right answers, and how many it gives word for word.

Both come of one pass over each question with its right answer. An answer is given if at each of its tokens, the end of
the turn included, the right one is the most likely: what greedy generation and an exact match would say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.profiles import read_config
from learners.data.collate import IGNORED, Encoded, collate
from learners.data.lengths import grouped_by_length

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 8192
"""Of questions that are scored at once, padding included."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Of `num_rows` questions: e to the mean negative log-probability of their answers' tokens, and the share given."""

    num_rows: int
    num_tokens: int
    perplexity: float
    exact_match: float


def judge(model_dir: Path, rows: Sequence[Encoded], pad_id: int) -> Quality:
    """Loads `model_dir` with transformers, quantized or not, and scores `rows`: in float32 on a CPU."""
    model = _load(model_dir)
    nlls: list[float] = []
    num_given = 0
    for chunk in grouped_by_length(rows, MAX_TOKENS):
        for answer_nlls, is_given in _score(model, chunk, pad_id):
            nlls += answer_nlls
            num_given += is_given
    return Quality(len(rows), len(nlls), math.exp(sum(nlls) / len(nlls)), num_given / len(rows))


def _load(model_dir: Path) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText, CompressedTensorsConfig

    # Weights as numbers again, at load: what rounds them lazily hangs on the whole model's forward, which we go round.
    # Inputs are rounded in each pass, as an engine does.
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if _is_quantized(model_dir) else {}
    has_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if has_gpu else torch.float32
    model = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=dtype, local_files_only=True, **options)
    return model.to("cuda" if has_gpu else "cpu").eval()


def _is_quantized(model_dir: Path) -> bool:
    return "quantization_config" in read_config(model_dir)


def _score(model: Any, chunk: Sequence[Encoded], pad_id: int) -> Iterator[tuple[list[float], bool]]:
    """Negative log-probabilities of each answer's learned tokens, and whether all of these are the most likely."""
    import torch

    inputs = {name: tensor.to(model.device) for name, tensor in collate(chunk, pad_id).items()}
    labels = inputs.pop("labels")
    with torch.inference_mode():
        hidden = model.model(**inputs, use_cache=False).last_hidden_state  # (B, T, width)
        for row, targets in zip(hidden[:, :-1], labels[:, 1:], strict=True):
            is_answer = targets != IGNORED
            yield _score_answer(model.get_output_embeddings()(row[is_answer]), targets[is_answer])


def _score_answer(logits: torch.Tensor, targets: torch.Tensor) -> tuple[list[float], bool]:
    """Shapes (num_tokens, vocabulary) and (num_tokens,)."""
    nlls = -logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return nlls.tolist(), bool((logits.argmax(-1) == targets).all())
