"""`python -m learners toy`: the data set as rows, and the small base model."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from learners.toy.easy_vqa import NUM_HELD_OUT, Question, corrections, dev, doubtful, held_out

BASE = Path(__file__).parent / "weights" / "base"

app = typer.Typer(help="The small base model, and the data set easy-VQA.", no_args_is_help=True)


class RowSet(StrEnum):
    """Which images questions are about."""

    HELD_OUT = "held-out"
    CORRECTIONS = "corrections"
    DOUBTFUL = "doubtful"
    DEV = "dev"


class ScoredSet(StrEnum):
    """What a model is scored on."""

    HELD_OUT = "held-out"
    DEV = "dev"


class Device(StrEnum):
    """Where to train."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Family(StrEnum):
    """A key of `learners.toy.families.FAMILIES`."""

    QWEN3_VL = "qwen3_vl"
    INTERNVL = "internvl"


class Number(StrEnum):
    """The number format of a copy."""

    FP8 = "fp8"
    W4A16 = "w4a16"


@app.command()
def rows(
    out: Annotated[Path, typer.Option(help="The JSONL file to write.")],
    which: Annotated[RowSet, typer.Option("--set", help="Which questions; doubtful: most of them negated.")],
    num: Annotated[int, typer.Option(min=1, help="How many questions.")] = NUM_HELD_OUT,
    seed: Annotated[int, typer.Option(help="Draws corrections and doubtful; the other sets are fixed.")] = 0,
) -> None:
    """Writes questions with their right answers, one JSON object a line."""
    drawn = _questions(RowSet(which), num, seed)
    _write_whole(out, "".join(json.dumps(_as_row(row)) + "\n" for row in drawn))
    typer.echo(f"{len(drawn)} questions written to {out}", err=True)


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="The directory for base, base-fp8 and report.json.")],
    family: Annotated[Family, typer.Option(help="The model family.")] = Family.QWEN3_VL,
    device: Annotated[Device, typer.Option(help="Minutes on a GPU, half an hour on a CPU.")] = Device.AUTO,
    seed: Annotated[int, typer.Option(help="Of the weights and of the draws.")] = 0,
) -> None:
    """Trains the small base, makes its FP8 copy, and scores it."""
    from learners.progress import StepProgress
    from learners.toy.build import build as build_base
    from learners.toy.build import pick_device, recipe_for
    from learners.toy.families import FAMILIES

    _quieten()
    command = shlex.join(["python", "-m", "learners", "toy", *sys.argv[2:]])
    toy = FAMILIES[family.value]
    num_steps = recipe_for(toy, pick_device(device.value)).num_steps
    with StepProgress(num_steps) as progress:
        made = build_base(out, toy, device.value, seed, command, progress.show)
    typer.echo(json.dumps(asdict(made), indent=2))


@app.command()
def quantize(
    out: Annotated[Path, typer.Option(help="The directory for the copy.")],
    scheme: Annotated[Number, typer.Option(help="The number format of its language linears.")],
    model: Annotated[Path, typer.Option(help="The directory of the unquantized base.")] = BASE,
) -> None:
    """Writes a copy of a base in another number format (compressed-tensors), for an engine to serve."""
    from learners.toy.quantize import quantize as quantize_base
    from learners.toy.schemes import SCHEMES

    quantize_base(model, out, SCHEMES[scheme.value])
    typer.echo(f"{model} as {scheme.value} written to {out}", err=True)


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Option(help="A model directory.")],
    adapter: Annotated[Path | None, typer.Option(help="A PEFT adapter, merged into it.")] = None,
    which: Annotated[ScoredSet, typer.Option("--set", help="The questions.")] = ScoredSet.DEV,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Scores a model with transformers in float32, by teacher-forced argmax (equal to greedy exact match)."""
    from learners.toy.evaluate import evaluate as score
    from learners.toy.evaluate import load_model

    _quieten()
    score_of = score(*load_model(model, adapter), _questions(RowSet(which.value), NUM_HELD_OUT, seed=0))
    if as_json:
        typer.echo(json.dumps(asdict(score_of)))
        return
    by_kind = "  ".join(f"{kind.value} {share:.3f}" for kind, share in score_of.by_kind.items())
    typer.echo(f"{score_of.overall:.3f} of {score_of.num}: {by_kind}")


def _questions(which: RowSet, num: int, seed: int) -> Sequence[Question]:
    match which:
        case RowSet.HELD_OUT:
            return held_out(num)
        case RowSet.DEV:
            return dev(num)
        case RowSet.CORRECTIONS:
            return corrections(seed, num)
        case RowSet.DOUBTFUL:
            return doubtful(seed, num)


def _as_row(row: Question) -> dict[str, str]:
    return {
        "image": str(row.image_path),
        "text": row.text,
        "answer": row.answer,
        "kind": row.kind.value,
        "id": row.key,
    }


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _quieten() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
