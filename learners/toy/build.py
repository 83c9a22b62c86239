"""Builds the toy base from nothing: tokenizer, processor, weights, the FP8 copy, and what they score."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.adapter.base import base_hash_of
from engines.errors import BadRequest
from learners.toy.easy_vqa import Split, dev, held_out, questions
from learners.toy.evaluate import Accuracy, evaluate, load_model
from learners.toy.families import ToyFamily
from learners.toy.model import build_model, save
from learners.toy.quantize import quantize
from learners.toy.tokenizer import build_tokenizer
from learners.toy.train import CPU_RECIPE, Recipe, Report, train

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

BASE, BASE_FP8, REPORT_FILE = "base", "base-fp8", "report.json"
PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class BuildReport:
    """How a base was made and what it scores (transformers, float32, teacher-forced argmax)."""

    command: str
    seed: int
    device: str
    versions: str
    recipe: Recipe
    train_seconds: float
    num_parameters: int
    base_hash: str
    dev: Accuracy
    held_out: Accuracy


def build(out: Path, family: ToyFamily, device_name: str, seed: int, command: str, report: Report) -> BuildReport:
    """Writes `out`/base, `out`/base-fp8 and `out`/report.json. Raises `BadRequest` if `out` holds a base already.

    All of it is made in a hidden folder first: a build that is killed leaves no half of a base.
    """
    if (out / BASE).exists():
        raise BadRequest(f"{out / BASE} is there already: remove it, or name another directory", param="out")
    partial = out / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    made = _build_into(partial, family, device_name, seed, command, report)
    for name in (BASE_FP8, REPORT_FILE, BASE):  # the base last: with it, all is there
        _move(partial / name, out / name)
    partial.rmdir()
    return made


def _build_into(out: Path, family: ToyFamily, device_name: str, seed: int, command: str, report: Report) -> BuildReport:
    base = out / BASE
    device = pick_device(device_name)
    recipe = recipe_for(family, device)
    tokenizer = toy_tokenizer(family)
    processor = family.build_processor(tokenizer)
    model = build_model(family, tokenizer, seed).to(device)
    seconds = train(model, processor, recipe, seed, report)
    save(model.cpu(), processor, base)
    quantize(base, out / BASE_FP8)
    dev_score, held_out_score = score(base, device)
    made = BuildReport(
        command=command,
        seed=seed,
        device=describe(device),
        versions=_versions(),
        recipe=recipe,
        train_seconds=round(seconds, 1),
        num_parameters=model.num_parameters(),
        base_hash=base_hash_of(base),
        dev=dev_score,
        held_out=held_out_score,
    )
    (out / REPORT_FILE).write_text(json.dumps(asdict(made), indent=2) + "\n", "utf-8")
    return made


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)


def toy_tokenizer(family: ToyFamily) -> PreTrainedTokenizerFast:
    """The tokenizer, trained on the base split's questions and answers."""
    texts = [text for row in questions(Split.BASE) for text in (row.text, row.answer)]
    return build_tokenizer(texts, family)


def score(base: Path, device: torch.device) -> Sequence[Accuracy]:
    """Accuracy of the saved weights on dev and on held-out."""
    model, processor = load_model(base)
    model.to(device)
    return [evaluate(model, processor, rows) for rows in (dev(), held_out())]


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU if there is one. Raises `BadRequest` for one that is not there."""
    import torch

    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise BadRequest("no CUDA device is here: use --device cpu", param="device")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and has_gpu) else "cpu")


def recipe_for(family: ToyFamily, device: torch.device) -> Recipe:
    """Large batches on a GPU; on a CPU as many steps of small ones as half an hour allows."""
    return Recipe(family.gpu_steps) if device.type == "cuda" else CPU_RECIPE


def describe(device: torch.device) -> str:
    """The device in words."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def _versions() -> str:
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}"
