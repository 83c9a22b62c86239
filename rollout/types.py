"""The vocabulary of rollouts: a prompt, the trajectories that were sampled for it, and their rewards.

Frozen values that cross Ray and are written into checkpoints. Samples carry token ids and log-probabilities; nothing is
ever tokenized again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from engines.types import Endpoint, VersionName
from rollout.messages import Message, Picture, pictures_of


class FinishReason(StrEnum):
    """Why sampling ended: the end of the turn was sampled, the bound was reached, or the engine was told to."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row to sample for. `fields` are the row's other columns, `answer` among them: what rewards read."""

    id: str
    messages: tuple[Message, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[Picture, ...]:
        return pictures_of(self.messages)


@dataclass(frozen=True, slots=True)
class Turn:
    """One request to an engine and what it sampled.

    `prompt_ids` are what the engine made of `messages` (image placeholders expanded); `token_ids` and `logprobs`
    (natural, of the distribution that was sampled from: temperature applied, forbidden tokens left out) have one entry
    for each sampled token, shape (num_tokens,). Only these carry loss.
    """

    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: FinishReason


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What one attempt at a prompt said: one turn, or several with an environment's replies between them."""

    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """The last turn's: the answer."""
        return self.turns[-1].text if self.turns else ""

    @property
    def num_tokens(self) -> int:
        return sum(len(turn.token_ids) for turn in self.turns)

    @property
    def is_truncated(self) -> bool:
        return any(turn.finish is not FinishReason.STOP for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Score:
    """A trajectory's reward: the weighted sum, and each function's value before weighting, by its name.

    `is_vetoed`: a veto term held, so `total` is what the veto says.
    """

    total: float
    parts: Mapping[str, float]
    is_vetoed: bool = False


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a sample is not there. `is_transient`: what it needed was away for a while; else its row is the cause.

    `is_other_version`: an engine answered for another version than asked; this too is transient.
    """

    reason: str
    is_transient: bool = False
    is_other_version: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """An engine replica to sample from: its name (`engine/N`) and where it answers."""

    name: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is asked for: `num_samples` trajectories of `prompt` by just `version`, from any of `targets`."""

    prompt: Prompt
    version: VersionName
    targets: tuple[Target, ...]
    num_samples: int


@dataclass(frozen=True, slots=True)
class Group:
    """Trajectories of one prompt by one version, each with its score.

    `num_lost` of the samples asked for are not here: the engine did not answer, or a reward could not be had; `losses`
    says why, one line each. Of `num_transient` of them the row is not the cause: an engine or a judge was away.
    `other_version`: the line of the first that an engine answered for another version than asked; empty: of none.
    `by_replica`: how many trajectories each replica sampled.
    """

    prompt: Prompt
    version: VersionName
    trajectories: tuple[Trajectory, ...]
    scores: tuple[Score, ...]
    num_lost: int = 0
    losses: tuple[str, ...] = ()
    seconds: float = 0.0
    by_replica: Mapping[str, int] = field(default_factory=dict)
    num_transient: int = 0
    other_version: str = ""
