"""The learner's policy: log-probabilities of what the engines sampled, and one optimizer step on them.

N sampled tokens of a batch are scored in chunks, each recomputed in the backward pass, so no more than
(chunk_tokens, vocabulary) logits exist at once.

Imports torch: only the run of a job imports this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from learners.grpo.attention import attention_mask, position_ids
from learners.grpo.batch import Batch
from learners.grpo.loss import Denominators, LossTerms, add_up, k3
from learners.grpo.optimizer import Optimizer
from learners.grpo.presets import LossSpec
from learners.vision import SeenImages

if TYPE_CHECKING:
    from peft import PeftModel

CHUNK_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """Natural log-probabilities, and the entropy in nats of the distribution (no gradient): (B, T), 0 at no token."""

    logprobs: Tensor
    entropy: Tensor


@dataclass(frozen=True, slots=True)
class StepTerms:
    """An optimizer step in numbers: means over its tokens (`LossTerms` says of what) before it, and what the optimizer
    did. Where `kl` is no part of the loss it is only watched, in the first micro-batch, that of the longest rows.

    `skipped` says why the weights were left as they were; empty: they were changed. None is what was not measured, as
    there was nothing to learn from.
    """

    loss: float | None = None
    policy_loss: float | None = None
    kl: float | None = None
    entropy: float | None = None
    clip_fraction: float | None = None
    ratio_mean: float | None = None
    mismatch: float | None = None
    mismatch_kl: float | None = None
    weight_mean: float | None = None
    weight_capped: float | None = None
    grad_norm: float | None = None
    learning_rate: float = 0.0
    num_tokens: int | None = None
    num_micro_batches: int = 0
    skipped: str = ""


class LossFunction(Protocol):
    """`learners.grpo.loss.loss`."""

    def __call__(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor | None,
        rollout_logprobs: Tensor,
        ref_logprobs: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        spec: LossSpec,
        denominators: Denominators,
    ) -> LossTerms: ...


class Policy:
    """`temperature` and `forbidden_ids` are those that the engines sample with: the distributions must be the same."""

    def __init__(
        self, model: PeftModel, forbidden_ids: Sequence[int], temperature: float, chunk_tokens: int = CHUNK_TOKENS
    ) -> None:
        self._model = model
        self._backbone: Any = model.get_base_model().model
        self._forbidden = torch.tensor(sorted(forbidden_ids), dtype=torch.long, device=model.device)
        self._temperature = temperature
        self._chunk_tokens = chunk_tokens

    @property
    def device(self) -> torch.device:
        return self._model.device

    def logprobs(self, batch: Batch) -> PolicyOutput:
        """Under the adapter, with its gradient. `batch` is on the policy's device."""
        hidden = self._hidden(batch)
        targets = batch.token_ids[batch.sampled]
        pieces = [self._score_chunk(*chunk) for chunk in self._chunks(hidden, targets)]
        logprobs, entropy = (torch.cat(column) for column in zip(*pieces, strict=True))
        return PolicyOutput(_spread(logprobs, batch.sampled), _spread(entropy, batch.sampled))

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """(B, T), of the base without the adapter."""
        with torch.no_grad(), self._model.disable_adapter():
            return self.logprobs(batch).logprobs

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around all passes over one batch: its images are looked at once."""
        with SeenImages().remembered(self._backbone):
            yield

    def _hidden(self, batch: Batch) -> Tensor:
        """(N, width), in the order of `batch.sampled`: what predicts each sampled token."""
        states = self._backbone(
            **batch.inputs,
            attention_mask=attention_mask(batch.segments),
            position_ids=position_ids(self._backbone, batch),
            use_cache=False,
        ).last_hidden_state
        rows = batch.rows[:, None].expand_as(batch.positions)
        return states[rows[batch.sampled], batch.positions[batch.sampled]]

    def _chunks(self, hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(hidden.split(self._chunk_tokens), targets.split(self._chunk_tokens), strict=True)

    def _score_chunk(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        scores: tuple[Tensor, Tensor] = checkpoint(self._score, hidden, targets, use_reentrant=False)
        return scores

    def _score(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies, each (n,), of n hidden states; float32."""
        logits = self._model.get_output_embeddings()(hidden).float() / self._temperature
        distribution = logits.index_fill(1, self._forbidden, float("-inf")).log_softmax(-1)
        chosen = distribution.gather(1, targets[:, None])[:, 0]
        with torch.no_grad():
            entropy = torch.special.entr(distribution.exp()).sum(-1)
        return chosen, entropy


def learn(
    policy: Policy,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    spec: LossSpec,
    loss: LossFunction,
    denominators: Denominators,
) -> StepTerms:
    """One optimizer step on all of `batches`, at least one, whose gradients add up.

    A loss or gradient that is not finite leaves the weights as they were, and `skipped` says so. Raises `Refused` when
    that happened too often in a row.
    """
    optimizer.zero_grad()
    parts = [
        _accumulate(policy, batch.to(policy.device), spec, loss, denominators, measures_kl=number == 0)
        for number, batch in enumerate(batches)
    ]
    terms, entropy = add_up([part.terms for part in parts]), sum(part.entropy for part in parts)
    outcome = optimizer.step(float(terms.loss))
    return StepTerms(
        loss=float(terms.loss),
        policy_loss=float(terms.policy),
        kl=float(terms.kl) if spec.kl_beta else parts[0].kl,
        entropy=entropy / max(denominators.num_measured, 1),
        clip_fraction=float(terms.clip_fraction),
        ratio_mean=float(terms.ratio_mean),
        mismatch=float(terms.mismatch),
        mismatch_kl=float(terms.mismatch_kl),
        weight_mean=float(terms.weight_mean),
        weight_capped=float(terms.weight_capped),
        grad_norm=outcome.grad_norm,
        learning_rate=outcome.learning_rate,
        num_tokens=denominators.num_tokens,
        num_micro_batches=len(batches),
        skipped=outcome.skipped,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A batch's part of the step's terms, the sum of its tokens' entropies, and its mean divergence, if measured."""

    terms: LossTerms
    entropy: float
    kl: float | None


def _accumulate(
    policy: Policy, batch: Batch, spec: LossSpec, loss: LossFunction, denominators: Denominators, *, measures_kl: bool
) -> _Part:
    with policy.reading():
        reference = policy.reference_logprobs(batch) if spec.kl_beta or measures_kl else None
        output = policy.logprobs(batch)
    terms = loss(
        output.logprobs,
        None,  # a step is learned from once, so its own log-probabilities are those of before it
        batch.rollout_logprobs,
        reference if spec.kl_beta else None,
        batch.advantages,
        batch.mask,
        spec,
        denominators,
    )
    terms.loss.backward()
    kl = None if reference is None else k3(reference - output.logprobs.detach())[batch.sampled].mean()
    return _Part(terms, float(output.entropy[batch.mask].sum()), None if kl is None else float(kl))


def _spread(values: Tensor, sampled: Tensor) -> Tensor:
    empty: Any = values.new_zeros(sampled.shape)
    return empty.masked_scatter(sampled, values)
