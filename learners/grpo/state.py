"""What a checkpoint's `trainer_state/` of a GRPO job holds: optimizer and random numbers, and the rollouts' snapshot.

Tensors are safetensors, the rest is JSON: nothing of a checkpoint is ever executed. Call `save_state` inside
`writing_checkpoint`, which makes it last.

Imports torch: only the run of a job imports this module.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engines.errors import Refused
from learners.grpo.optimizer import OptimizerState

TENSORS_FILE = "learner.safetensors"
STATE_FILE = "state.json"
_MOMENTS, _TORCH, _CUDA = "adamw.", "random.torch", "random.cuda."

SnapshotT = TypeVar("SnapshotT")


class RandomNumbers(BaseModel):
    """The states of Python's and numpy's global generators."""

    python: tuple[int, tuple[int, ...], float | None]
    numpy: tuple[str, tuple[int, ...], int, int, float]


class StateFile(BaseModel, Generic[SnapshotT]):
    """Bytes, as those of pictures, are base64. A score may be NaN."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")

    step: int
    num_done: int
    skipped_in_a_row: int
    random: RandomNumbers
    snapshot: SnapshotT


@dataclass(frozen=True, slots=True)
class RestoredState(Generic[SnapshotT]):
    """`optimizer` is for `Optimizer.load_state_dict`."""

    step: int
    optimizer: OptimizerState
    snapshot: SnapshotT


def save_state(folder: Path, *, step: int, optimizer: OptimizerState, snapshot: Any) -> None:
    """`snapshot` is a frozen dataclass of plain values, in which each part's type is declared."""
    moments = {_MOMENTS + name: tensor.contiguous() for name, tensor in optimizer.moments.items()}
    save_file(moments | _torch_random(), folder / TENSORS_FILE, metadata={"step": str(step)})
    kind: Any = type(snapshot)
    state = StateFile[kind](
        step=step,
        num_done=optimizer.num_done,
        skipped_in_a_row=optimizer.skipped_in_a_row,
        random=_plain_random(),
        snapshot=snapshot,
    )
    (folder / STATE_FILE).write_text(state.model_dump_json())


def load_state(folder: Path, kind: type[SnapshotT], device: torch.device | str = "cpu") -> RestoredState[SnapshotT]:
    """Also puts back the state of the random numbers. `kind` is the snapshot's class.

    Raises `Refused` if the files are not there, damaged, or of different steps.
    """
    state = _read_state(folder / STATE_FILE, kind)
    tensors = _read_tensors(folder / TENSORS_FILE, state.step, str(device))
    _set_random(state.random, tensors)
    moments = {name.removeprefix(_MOMENTS): value for name, value in tensors.items() if name.startswith(_MOMENTS)}
    optimizer = OptimizerState(moments, state.num_done, state.skipped_in_a_row)
    return RestoredState(state.step, optimizer, state.snapshot)


def _read_state(path: Path, kind: type[SnapshotT]) -> StateFile[SnapshotT]:
    try:
        return StateFile[kind].model_validate_json(path.read_bytes())  # type: ignore[valid-type]
    except (OSError, ValidationError) as error:
        raise _refusal(path, "it is not the state of a GRPO job", detail=str(error)) from error


def _read_tensors(path: Path, step: int, device: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            written = (file.metadata() or {}).get("step")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise _refusal(path, "it cannot be read as tensors", detail=str(error)) from error
    if written != str(step) or _TORCH not in tensors:
        raise _refusal(path, f"it is of step {written}, {STATE_FILE} beside it of step {step}")
    return tensors


def _refusal(path: Path, reason: str, detail: str = "") -> Refused:
    return Refused(f"{path}: {reason}; remove this checkpoint, and the job resumes from the one before", detail=detail)


def _torch_random() -> dict[str, Tensor]:
    of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {_TORCH: torch.get_rng_state()} | {f"{_CUDA}{number}": state for number, state in enumerate(of_gpus)}


def _plain_random() -> RandomNumbers:
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    numbers = (str(kind), tuple(int(key) for key in keys), int(place), int(has_gauss), float(gauss))
    return RandomNumbers(python=random.getstate(), numpy=numbers)


def _set_random(plain: RandomNumbers, tensors: dict[str, Tensor]) -> None:
    """Of a GPU that is not there any more, nothing is put back."""
    random.setstate(plain.python)
    kind, keys, place, has_gauss, gauss = plain.numpy
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(tensors[_TORCH].cpu())
    for number in range(torch.cuda.device_count()):
        if (state := tensors.get(f"{_CUDA}{number}")) is not None:
            torch.cuda.set_rng_state(state.cpu(), number)
