"""AdamW over the adapter's weights: gradients are cut to a length, and a step that is not finite is not made.

Imports torch: only the run of a job imports this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engines.errors import Refused
from learners.config import GrpoConfig

MAX_SKIPPED_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """`grad_norm` before it was cut. `skipped`: why the weights were left as they were; empty if they were changed."""

    grad_norm: float
    learning_rate: float
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """`moments`: AdamW's tensors by `<parameter's place>.<name>`; and how many steps were done, skipped ones too."""

    moments: Mapping[str, Tensor]
    num_done: int = 0
    skipped_in_a_row: int = 0


class Optimizer:
    """`num_steps`: of the whole run, over which a linear schedule decays to zero."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], config: GrpoConfig, num_steps: int) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._config = config
        self._num_steps = num_steps
        self._adamw = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True
        )
        self._num_done = 0
        self._skipped_in_a_row = 0

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        if self._config.lr_schedule == "constant":
            return self._config.learning_rate
        return self._config.learning_rate * max(0.0, 1 - self._num_done / self._num_steps)

    def zero_grad(self) -> None:
        self._adamw.zero_grad(set_to_none=True)

    def step(self, loss: float) -> Outcome:
        """Changes the weights by the gradients that they have, or leaves both them and the moments as they were.

        Raises `Refused` at the third step in a row whose loss or gradient is not finite.
        """
        learning_rate = self.learning_rate
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm))
        self._num_done += 1
        skipped = _not_finite(loss, norm)
        if skipped:
            self._skip(skipped)
        else:
            self._skipped_in_a_row = 0
            for group in self._adamw.param_groups:
                group["lr"] = learning_rate
            self._adamw.step()
        self.zero_grad()
        return Outcome(norm, learning_rate, skipped)

    def pass_over(self) -> float:
        """Counts a step without anything to learn from; answers with the learning rate that it would have had."""
        learning_rate = self.learning_rate
        self._num_done += 1
        return learning_rate

    def state_dict(self) -> OptimizerState:
        states = self._adamw.state_dict()["state"].items()
        moments = {f"{index}.{name}": tensor for index, values in states for name, tensor in values.items()}
        return OptimizerState(moments, self._num_done, self._skipped_in_a_row)

    def load_state_dict(self, state: OptimizerState) -> None:
        """The settings stay those that this optimizer was made with."""
        states: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.moments.items():
            index, _, name = key.partition(".")
            states.setdefault(int(index), {})[name] = tensor
        self._adamw.load_state_dict({"state": states, "param_groups": self._adamw.state_dict()["param_groups"]})
        self._num_done = state.num_done
        self._skipped_in_a_row = state.skipped_in_a_row

    def _skip(self, reason: str) -> None:
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise Refused(
                f"{reason}, {MAX_SKIPPED_IN_A_ROW} steps in a row: training diverged; lower learning_rate and start "
                "anew"
            )


def _not_finite(loss: float, norm: float) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return "" if math.isfinite(norm) else f"the length of the gradient is {norm}"
