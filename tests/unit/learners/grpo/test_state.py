"""What a GRPO checkpoint keeps comes back as it was."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.errors import Refused
from engines.types import VersionName
from learners.checkpoint import list_checkpoints, writing_checkpoint
from learners.config import GrpoConfig
from learners.grpo.optimizer import Optimizer, OptimizerState
from learners.grpo.state import STATE_FILE, TENSORS_FILE, load_state, save_state
from rollout.messages import Message, Picture, Text
from rollout.types import FinishReason, Group, Prompt, Score, Trajectory, Turn

CONFIG = GrpoConfig.model_validate(
    {
        "model": "base",
        "data": "rows.jsonl",
        "output": "out",
        "rollout": {"engine": "small"},
        "lr_schedule": "linear",
        "weight_decay": 0.1,
    }
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    low: int
    consumed: frozenset[int]
    buffered: tuple[tuple[int, Group], ...]


def group() -> Group:
    pictures = (Picture(content=b"\x89PNG\xff\x00"), Picture(path=Path("/rows/a.png")))
    messages = (Message("user", (*pictures, Text("what color?"))),)
    turn = Turn(messages, (1, 2), (3, 4), (-0.1, math.log(1 / 3)), "red", FinishReason.LENGTH)
    prompt = Prompt("7", messages, {"answer": "red", "boxes": [[0, 1, 2, 3]], "weight": 0.1, "none": None})
    return Group(
        prompt,
        VersionName("job.1/step", 4),
        (Trajectory((turn,)), Trajectory((turn, turn))),
        (Score(1.0, {"exact_match": 1.0}), Score(-1.0, {"exact_match": 0.0}, is_vetoed=True)),
        num_lost=1,
        losses=("engine/0 did not answer",),
        seconds=0.25,
        by_replica={"engine/0": 2},
    )


SNAPSHOT = Snapshot(3, frozenset({5, 9}), ((4, group()),))


def step_of(optimizer: Optimizer, parameter: torch.nn.Parameter) -> None:
    parameter.grad = torch.randn(parameter.shape)
    optimizer.step(0.0)


def test_a_snapshot_comes_back_equal_with_pictures_and_rows(tmp_path: Path) -> None:
    save_state(tmp_path, step=2, optimizer=OptimizerState({}), snapshot=SNAPSHOT)
    restored = load_state(tmp_path, Snapshot)
    assert (restored.step, restored.snapshot) == (2, SNAPSHOT)


def test_training_that_was_resumed_goes_on_as_the_one_that_was_not(tmp_path: Path) -> None:
    torch.manual_seed(3)
    parameter = torch.nn.Parameter(torch.zeros(8))
    optimizer = Optimizer([parameter], CONFIG, num_steps=6)
    step_of(optimizer, parameter)
    step_of(optimizer, parameter)
    with writing_checkpoint(tmp_path, 2) as folder:
        save_state(folder / "trainer_state", step=2, optimizer=optimizer.state_dict(), snapshot=SNAPSHOT)
    kept = parameter.detach().clone()
    step_of(optimizer, parameter)
    drawn = (random.random(), float(np.random.rand()), float(torch.rand(())))

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    other = torch.nn.Parameter(kept)
    resumed = Optimizer([other], CONFIG, num_steps=6)
    (checkpoint,) = list_checkpoints(tmp_path)
    resumed.load_state_dict(load_state(checkpoint.trainer_state, Snapshot).optimizer)
    assert resumed.learning_rate == pytest.approx(CONFIG.learning_rate * 4 / 6)
    step_of(resumed, other)
    assert other.equal(parameter)
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == drawn


def cut(folder: Path) -> None:
    content = (folder / TENSORS_FILE).read_bytes()
    (folder / TENSORS_FILE).write_bytes(content[: len(content) // 2])


def replace_by_a_pickle(folder: Path) -> None:
    torch.save({"step": 1}, folder / TENSORS_FILE)


def replace_by_another_step(folder: Path) -> None:
    keep = (folder / STATE_FILE).read_bytes()
    save_state(folder, step=8, optimizer=OptimizerState({}), snapshot=SNAPSHOT)
    (folder / STATE_FILE).write_bytes(keep)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "learner.safetensors: it cannot be read"),
        (replace_by_a_pickle, "learner.safetensors: it cannot be read"),
        (lambda folder: (folder / TENSORS_FILE).unlink(), "learner.safetensors: it cannot be read"),
        (lambda folder: (folder / STATE_FILE).write_text('{"step": 1}'), "state.json: it is not the state"),
        (replace_by_another_step, "is of step 8, state.json beside it of step 1"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path: Path, damage: Callable[[Path], object], reason: str) -> None:
    save_state(tmp_path, step=1, optimizer=OptimizerState({}), snapshot=SNAPSHOT)
    damage(tmp_path)
    with pytest.raises(Refused, match=reason):
        load_state(tmp_path, Snapshot)
