"""The learner of a GRPO job: from groups to an optimizer step, and from the weights to what is sent and saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.adapter.base import BaseModel
from learners.checkpoint import TRAINER_STATE, Checkpoint
from learners.config import GrpoConfig
from learners.data.collate import Encoder
from learners.data.examples import Example
from learners.data.readers import DataSet
from learners.grpo.advantage import advantages, weights_of
from learners.grpo.batch import Batch, Sample, samples_of
from learners.grpo.delivery import Push
from learners.grpo.loss import Denominators, loss
from learners.grpo.optimizer import Optimizer
from learners.grpo.policy import Policy, StepTerms, learn
from learners.grpo.presets import resolve
from learners.grpo.pushes import Packer
from learners.grpo.rows import micro_batches
from learners.grpo.state import load_state, save_state
from learners.probe import Probe
from rollout.pump import PumpSnapshot
from rollout.types import Group, Prompt

if TYPE_CHECKING:
    from peft import PeftModel

PROBE_ANSWER = "yes"
"""What the probe scores after a prompt whose row names no answer: any text will do."""


class Learner:
    """Belongs to the main thread."""

    def __init__(
        self,
        config: GrpoConfig,
        model: PeftModel,
        encoder: Encoder,
        base: BaseModel,
        data: DataSet[Prompt],
        *,
        run_number: int,
        num_steps: int,
    ) -> None:
        self._config = config
        self._encoder = encoder
        self._spec = resolve(config.algorithm)
        self._weights = weights_of(config.rewards)
        self._forbidden = frozenset(encoder.ids_of(base.profile.vision_tokens))
        self._policy = Policy(model, sorted(self._forbidden), config.rollout.temperature)
        self._optimizer = Optimizer(model.parameters(), config, num_steps)
        probe = Probe(model, encoder, [_as_example(prompt) for prompt in data.examples], config.probe_size)
        self._packer = Packer(config, run_number, model, probe, base, data.data_hash)

    def learn(self, groups: Sequence[Group]) -> StepTerms:
        """One optimizer step. Raises `EngineFault` if an engine read a prompt otherwise, `Refused` on divergence."""
        samples = samples_of(
            groups,
            advantages([group.scores for group in groups], self._weights, self._spec),
            self._encoder,
            forbidden_ids=self._forbidden,
            mask_truncated=self._spec.mask_truncated,
        )
        taught = [sample for sample in samples if sample.carries_loss and (sample.advantage or self._spec.kl_beta)]
        if not taught:  # a step without a gradient would still move the weights, by the optimizer's momentum
            return StepTerms(learning_rate=self._optimizer.pass_over(), skipped=_why_nothing(samples))
        batches = micro_batches(taught, self._encoder.pad_id, self._config.micro_batch_tokens)
        return learn(self._policy, self._optimizer, batches, self._spec, loss, self._count(samples, batches))

    def _count(self, samples: Sequence[Sample], batches: Sequence[Batch]) -> Denominators:
        """Of the whole step: a sample without advantage has no gradient, but is one of those that are averaged."""
        rows = [len(sample.token_ids) for sample in samples if sample.carries_loss]
        computed = Denominators.count((batch.mask for batch in batches), self._config.rollout.max_new_tokens)
        return computed.with_rest(len(samples) - computed.num_sequences, sum(rows) - computed.num_tokens)

    @property
    def compares_each_reward(self) -> bool:
        """Not only their sum: what `look_at` counts as flat."""
        return self._spec.normalise_each_reward

    def push(self, step: int) -> Push:
        """The adapter as it is, as the version that step `step` made."""
        return self._packer.push(step)

    def save(self, folder: Path, step: int, metrics: dict[str, float], snapshot: PumpSnapshot) -> None:
        """All that a checkpoint holds, into the folder that `writing_checkpoint` gives."""
        self._packer.write(folder, {"step": float(step), **metrics})
        save_state(folder / TRAINER_STATE, step=step, optimizer=self._optimizer.state_dict(), snapshot=snapshot)

    def restore(self, checkpoint: Checkpoint) -> PumpSnapshot:
        """The optimizer as it was (the weights are loaded already), and what the rollouts go on from."""
        state = load_state(checkpoint.trainer_state, PumpSnapshot, self._policy.device)
        self._optimizer.load_state_dict(state.optimizer)
        return state.snapshot


def _why_nothing(samples: Sequence[Sample]) -> str:
    """There is to learn in a step."""
    if any(sample.advantage for sample in samples):
        return "only answers that were cut off, which carry no loss, were better than their group"
    return "no answer was better than its group"


def _as_example(prompt: Prompt) -> Example:
    answer = prompt.fields.get("answer")
    text = answer if isinstance(answer, str) and answer else PROBE_ANSWER
    return Example(prompt.id, int(prompt.id), prompt.messages, text)
