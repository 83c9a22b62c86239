"""Trains the toy base on careless labels until it sees everything and uses the wrong words half of the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learners.toy.draws import Draw, Labelled, Stratum, draw, strata
from learners.toy.easy_vqa import Split, captions, questions
from learners.toy.families import family_of
from learners.toy.forward import AnswerForward
from learners.toy.tensors import Batch, Pictures, Prompts, collect, encode_prompts, load_pictures

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PreTrainedModel, ProcessorMixin


@dataclass(frozen=True, slots=True)
class Recipe:
    """AdamW with betas (0.9, 0.98), gradients clipped to norm 1; bfloat16 autocast on a GPU."""

    num_steps: int
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    num_warmup_steps: int = 50
    decay_share: float = 0.4
    """The learning rate falls linearly to zero over this last share of the steps."""


CPU_RECIPE = Recipe(num_steps=4_000, batch_size=32)

Report = Callable[[int, float], None]


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, flat, linear decay to zero; in [0, 1]."""
    warm_up = (step + 1) / recipe.num_warmup_steps
    left = (recipe.num_steps - step) / (recipe.num_steps * recipe.decay_share)
    return min(1.0, warm_up, left)


def train(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    recipe: Recipe,
    seed: int,
    report: Report = lambda step, loss: None,
) -> float:
    """Trains `model` in place, on its device; returns the seconds. `report` gets the step and its mean loss."""
    import numpy as np
    import torch

    started = time.monotonic()
    source = _Source(model, processor)
    forward = AnswerForward(model.train())
    optimizer, schedule = _optimizer(model, recipe)
    rng = np.random.default_rng(seed)
    for step in range(recipe.num_steps):
        batch = source.batch(draw(source.strata, recipe.batch_size, rng))
        loss = _loss(forward, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step + 1, float(loss.detach()))
    return time.monotonic() - started


class _Source:
    """The base split as tensors, and batches of it."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        import torch

        rows = questions(Split.BASE)
        self.strata: tuple[Stratum, ...] = strata(rows, tuple(captions(rows)))
        labelled = [row for stratum in self.strata for row in stratum.rows]
        self._device = model.device
        paths = [row.image_path for row in labelled]
        self._pictures: Pictures = load_pictures(paths, family_of(model), processor, model.device)
        pairs = [(row.text, answer) for row in labelled for answer in (row.answer, row.careless)]
        self._prompts: Prompts = encode_prompts(pairs, model, processor, model.device)
        self._images = torch.tensor([self._pictures.place[row.image_path] for row in labelled])
        self._right = torch.tensor([self._place(row, row.answer) for row in labelled])
        self._careless = torch.tensor([self._place(row, row.careless) for row in labelled])

    def _place(self, row: Labelled, answer: str) -> int:
        return self._prompts.place[row.text, answer]

    def batch(self, drawn: Draw) -> Batch:
        import torch

        rows = torch.from_numpy(drawn.rows)
        texts = torch.where(torch.from_numpy(drawn.careless), self._careless[rows], self._right[rows])
        images = self._images[rows] + torch.from_numpy(drawn.mirrored) * self._pictures.num_images
        return collect(self._pictures, self._prompts, images.to(self._device), texts.to(self._device))


def _loss(forward: AnswerForward, batch: Batch) -> Tensor:
    """Mean cross-entropy over the answer tokens of the batch."""
    import torch

    device = batch.input_ids.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        logits, labels = forward.answer_logits(batch)
    return torch.nn.functional.cross_entropy(logits, labels)


def _optimizer(model: PreTrainedModel, recipe: Recipe) -> tuple[torch.optim.Optimizer, LambdaLR]:
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
        fused=model.device.type == "cuda",
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))
