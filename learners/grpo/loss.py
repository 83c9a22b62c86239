"""The loss of GRPO and its kin: four choices, each a small function, over log-probabilities of sampled tokens.

All tensors are of natural logarithms, shape (B, T): row b holds the tokens sampled in one request, and `mask` says
which places are tokens. What stands elsewhere has no influence. A loss is a sum over a step divided by that step's
counts (`Denominators`), so the losses of its micro-batches add up to it, and so do their gradients.

Imports torch: only the run of a job imports this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from engines.errors import Internal
from learners.grpo.presets import LossSpec

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut to this size (a ratio of 5e8), so that no exponential overflows."""


@dataclass(frozen=True, slots=True)
class Denominators:
    """Counts of a whole optimizer step: rows, tokens under the mask, and the tokens of the `constant` length."""

    num_sequences: int
    num_tokens: int
    length: int
    num_measured: int
    """The tokens of those rows that are computed at all: rows without an advantage change only the counts above."""

    @classmethod
    def count(cls, masks: Iterable[Tensor], length: int) -> Denominators:
        """Of all micro-batches of a step, each mask (B, T). `length`: the most tokens that a row can have."""
        counts = [(mask.shape[0], int(mask.sum())) for mask in masks]
        num_tokens = sum(tokens for _, tokens in counts)
        return cls(sum(rows for rows, _ in counts), num_tokens, length, num_tokens)

    def with_rest(self, num_sequences: int, num_tokens: int) -> Denominators:
        """Together with rows that are not computed."""
        return replace(self, num_sequences=self.num_sequences + num_sequences, num_tokens=self.num_tokens + num_tokens)


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Scalars, each a part of the whole step's: those of its micro-batches add up (`add_up`). All but `loss` detached.

    `loss` = `policy` + kl_beta x divergence. Means over tokens: `kl`, k3 to the reference; `clip_fraction`, tokens that
    a bound holds; `ratio_mean`; `mismatch`, absolute difference of learner and rollout log-probability; `mismatch_kl`,
    k3 of the rollout's divergence from the learner; `weight_mean` and `weight_capped`, of the correction: its mean, and
    the share over the cap.
    """

    loss: Tensor
    policy: Tensor
    kl: Tensor
    clip_fraction: Tensor
    ratio_mean: Tensor
    mismatch: Tensor
    mismatch_kl: Tensor
    weight_mean: Tensor
    weight_capped: Tensor


def loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    rollout_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    spec: LossSpec,
    denominators: Denominators,
) -> LossTerms:
    """`logprobs` are the learner's and carry the gradient; `advantages` is (B,), everything else (B, T).

    `old_logprobs`, the learner's of before the step, matter with `spec.old = "learner"`; None: they are the present
    ones. `ref_logprobs` are needed where `spec.kl_beta` is not 0, and raise `Internal` if missing. A trajectory without
    loss has a row of zeros in `mask`.
    """
    if ref_logprobs is None and spec.kl_beta:
        raise Internal(
            f"kl_beta is {spec.kl_beta}, but there are no reference log-probabilities; compute them or set it to 0"
        )
    is_token = mask.bool()
    new, rollout = _keep(logprobs, is_token), _keep(rollout_logprobs, is_token)
    old = new.detach() if old_logprobs is None or spec.old == "rollout" else _keep(old_logprobs, is_token)
    behaviour = rollout if spec.old == "rollout" else old
    ratio = importance_ratio(new - behaviour, is_token, spec)
    surrogate, is_clipped = clip(ratio, new, advantages.unsqueeze(1), spec)
    weight, is_capped = correction_weight(old - rollout, spec)
    policy = normalise(-surrogate * weight, is_token, spec, denominators)
    divergence = torch.zeros_like(new) if ref_logprobs is None else k3(_keep(ref_logprobs, is_token) - new)
    # Weighted by the ratio, the gradient is that of the divergence itself (DeepSeek-V3.2, arXiv 2512.02556).
    penalty = spec.kl_beta * normalise(divergence * ratio, is_token, spec, denominators)

    def mean(values: Tensor) -> Tensor:
        return _keep(values.detach().float(), is_token).sum() / max(denominators.num_measured, 1)

    return LossTerms(
        loss=policy + penalty,
        policy=policy.detach(),
        kl=mean(divergence),
        clip_fraction=mean(is_clipped),
        ratio_mean=mean(ratio),
        mismatch=mean((old - rollout).abs()),
        mismatch_kl=mean(k3(old - rollout)),
        weight_mean=mean(weight),
        weight_capped=mean(is_capped),
    )


def add_up(terms: Sequence[LossTerms]) -> LossTerms:
    """The terms of a step from those of its micro-batches, detached. At least one."""
    return LossTerms(
        **{
            field.name: torch.stack([getattr(part, field.name).detach() for part in terms]).sum()
            for field in fields(LossTerms)
        }
    )


def importance_ratio(log_ratio: Tensor, is_token: Tensor, spec: LossSpec) -> Tensor:
    """(B, T): of each token; or of the row, the same at all its places: its geometric mean (GSPO), or its product."""
    if spec.ratio == "token":
        return _exp(log_ratio)
    total = log_ratio.sum(1, keepdim=True)
    if spec.ratio == "sequence":
        total = total / _lengths(is_token)
    return _exp(total).expand_as(log_ratio)


def clip(ratio: Tensor, logprobs: Tensor, advantages: Tensor, spec: LossSpec) -> tuple[Tensor, Tensor]:
    """What is to be maximised, and where a bound holds, both (B, T). `advantages` is (B, 1).

    PPO (arXiv 1707.06347, equation 7) takes the lower of the free and the bounded ratio's gain: beyond the bound there
    is no gradient. CISPO (arXiv 2506.13585, equation 4) bounds a weight without gradient; every token keeps its own.
    """
    low, high = 1 - spec.clip_low, 1 + spec.clip_high
    bounded = ratio.clamp(low, high)
    if spec.clip == "cispo":
        return bounded.detach() * advantages * logprobs, (ratio < low) | (ratio > high)
    is_clipped = ((ratio < low) & (advantages < 0)) | ((ratio > high) & (advantages > 0))
    return torch.minimum(ratio * advantages, bounded * advantages), is_clipped


def correction_weight(log_weight: Tensor, spec: LossSpec) -> tuple[Tensor, Tensor]:
    """Learner / rollout before the step, without gradient, and where it is over the cap, both (B, T).

    Truncated importance sampling: cut to the cap; masked: 0 above it. All ones where the ratio is to the rollout.
    """
    if spec.old == "rollout" or spec.correction == "none":
        return torch.ones_like(log_weight), torch.zeros_like(log_weight, dtype=torch.bool)
    free = log_weight.detach()
    if spec.correction_level == "sequence":
        free = free.sum(1, keepdim=True).expand_as(free)
    weight = _exp(free)
    is_capped = weight > spec.correction_cap
    over = spec.correction_cap if spec.correction == "truncate" else 0.0
    return weight.masked_fill(is_capped, over), is_capped


def normalise(values: Tensor, is_token: Tensor, spec: LossSpec, denominators: Denominators) -> Tensor:
    """This micro-batch's part of the step's mean: over each row, then rows; over tokens; or over a constant length."""
    kept = _keep(values, is_token)
    if spec.normaliser == "sequence":
        return (kept.sum(1, keepdim=True) / _lengths(is_token)).sum() / max(denominators.num_sequences, 1)
    if spec.normaliser == "tokens":
        return kept.sum() / max(denominators.num_tokens, 1)
    return kept.sum() / max(denominators.num_sequences * denominators.length, 1)


def k3(log_ratio: Tensor) -> Tensor:
    """Schulman's estimate of KL(p || q) from samples of p: r - 1 - log r with r = q / p; never negative.

    Source: http://joschu.net/blog/kl-approx.html. `log_ratio` is log q - log p.
    """
    bounded = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(bounded) - bounded


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _keep(values: Tensor, is_token: Tensor) -> Tensor:
    return torch.where(is_token, values, 0.0)


def _lengths(is_token: Tensor) -> Tensor:
    """(B, 1), at least 1."""
    return is_token.sum(1, keepdim=True).clamp(min=1)
