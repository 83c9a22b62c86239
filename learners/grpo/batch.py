"""From groups with advantages to samples, and the tensors that a step is computed from.

A sample is one turn of a trajectory: its prompt, then what was sampled, as the engine had them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.errors import EngineFault, Internal
from learners.data.collate import Encoded, Encoder
from rollout.messages import Message
from rollout.types import Group, Turn

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONTEXT = 4
"""Token ids shown on each side of the place where two prompts differ."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn to learn from. Without `carries_loss` it is measured, but teaches nothing."""

    row: str
    prompt: Encoded
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float
    carries_loss: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """B samples in R rows of L tokens (`rows.py`), T sampled tokens of the one with the most; padding is on the right.

    `inputs` are what the model reads: input_ids, mm_token_type_ids (R, L) and the vision tensors. `segments` (R, L): 0
    in a row's prompt, n in its n-th answer, -1 in padding.

    The others have the t-th sampled token at [:, t], shape (B, T): `token_ids`; `positions`, the place in the row whose
    hidden state predicts it; `sampled`, whether there is one; `mask`, whether it carries loss; `rollout_logprobs` (0
    where there is none). `rows` and `advantages` have shape (B,).
    """

    inputs: Mapping[str, Tensor]
    segments: Tensor
    rows: Tensor
    token_ids: Tensor
    positions: Tensor
    sampled: Tensor
    mask: Tensor
    rollout_logprobs: Tensor
    advantages: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            segments=self.segments.to(device),
            rows=self.rows.to(device),
            token_ids=self.token_ids.to(device),
            positions=self.positions.to(device),
            sampled=self.sampled.to(device),
            mask=self.mask.to(device),
            rollout_logprobs=self.rollout_logprobs.to(device),
            advantages=self.advantages.to(device),
        )


def samples_of(
    groups: Sequence[Group],
    advantages: Sequence[Sequence[float]],
    encoder: Encoder,
    *,
    forbidden_ids: frozenset[int] = frozenset(),
    mask_truncated: bool = False,
) -> tuple[Sample, ...]:
    """One sample for each turn in which something was sampled. `advantages`: one for each trajectory of each group.

    Samples of one conversation share its `Encoded`. Raises `EngineFault` naming the row if an engine read a prompt
    otherwise than the processor here makes it, or sampled what no model may.
    """
    encode = _remembered(encoder)
    return tuple(
        _sample(group.prompt.id, encode(turn.messages), turn, advantage, forbidden_ids, carries_loss=carries_loss)
        for group, of_group in zip(groups, advantages, strict=True)
        for trajectory, advantage in zip(group.trajectories, of_group, strict=True)
        for carries_loss in [not (mask_truncated and trajectory.is_truncated)]
        for turn in trajectory.turns
        if turn.token_ids
    )


def check_same_prompt(row: str, engine_ids: Sequence[int], learner_ids: Sequence[int]) -> None:
    """Raises `EngineFault` showing the first place where they differ."""
    if tuple(engine_ids) == tuple(learner_ids):
        return
    pairs = zip(engine_ids, learner_ids, strict=False)
    shorter = min(len(engine_ids), len(learner_ids))
    place = next((index for index, (theirs, ours) in enumerate(pairs) if theirs != ours), shorter)
    around = slice(max(0, place - CONTEXT), place + CONTEXT + 1)
    raise EngineFault(
        f"row {row}: the engine read another prompt than the learner does. They differ at token {place}: "
        f"engine {list(engine_ids[around])} of {len(engine_ids)}, learner {list(learner_ids[around])} of "
        f"{len(learner_ids)}; both must have the same tokenizer, chat template and image settings: compare the "
        "engine's model directory with the job's"
    )


def _remembered(encoder: Encoder) -> Callable[[tuple[Message, ...]], Encoded]:
    """Encodes each distinct conversation once."""
    known: dict[tuple[Message, ...], Encoded] = {}

    def encode(messages: tuple[Message, ...]) -> Encoded:
        if messages not in known:
            known[messages] = encoder.encode_prompt(messages)
        return known[messages]

    return encode


def _sample(
    row: str, prompt: Encoded, turn: Turn, advantage: float, forbidden_ids: frozenset[int], *, carries_loss: bool
) -> Sample:
    check_same_prompt(row, turn.prompt_ids, prompt.prompt_ids)
    if len(turn.logprobs) != len(turn.token_ids):
        raise Internal(f"row {row}: {len(turn.token_ids)} sampled tokens have {len(turn.logprobs)} log-probabilities")
    wrong = forbidden_ids.intersection(turn.token_ids)
    if wrong:
        raise EngineFault(
            f"row {row}: the engine sampled token {min(wrong)}, which stands for image features and must never be "
            "sampled: the engine has to be started by Tandem, which forbids it"
        )
    return Sample(row, prompt, turn.token_ids, turn.logprobs, advantage, carries_loss)
