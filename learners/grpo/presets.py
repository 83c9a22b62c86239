"""Which loss a job has: six published ones by name, and what a job's settings change of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from learners.config import Algorithm

Ratio = Literal["token", "sequence", "product"]
Normaliser = Literal["sequence", "tokens", "constant"]
Clip = Literal["ppo", "cispo"]
Scale = Literal["group", "batch", "none"]
Baseline = Literal["mean", "leave_one_out"]
Correction = Literal["none", "truncate", "mask"]
Level = Literal["token", "sequence"]


@dataclass(frozen=True, slots=True)
class LossSpec:
    """All choices of the loss and of its advantages; `learners.config.Algorithm` says what each means.

    `ratio` has one value that only a preset sets: `product`, the ratio of the whole sequence's probabilities, where
    `sequence` is its geometric mean a token. The ratio is kept in [1 - clip_low, 1 + clip_high].
    """

    ratio: Ratio = "token"
    normaliser: Normaliser = "sequence"
    clip: Clip = "ppo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    scale: Scale = "group"
    baseline: Baseline = "mean"
    old: Literal["learner", "rollout"] = "rollout"
    correction: Correction = "truncate"
    correction_level: Level = "token"
    correction_cap: float = 2.0
    kl_beta: float = 0.0
    normalise_each_reward: bool = False
    mask_truncated: bool = False


GRPO = LossSpec()
"""Group Relative Policy Optimization, DeepSeekMath (arXiv 2402.03300), equation 3."""

DR_GRPO = LossSpec(normaliser="constant", scale="none")
"""GRPO done right (arXiv 2503.20783): no bias by length, none by difficulty."""

DAPO = LossSpec(normaliser="tokens", clip_high=0.28)
"""Decoupled clip, mean over tokens (arXiv 2503.14476), equation 8."""

GSPO = LossSpec(ratio="sequence", clip_low=3e-4, clip_high=4e-4)
"""Group Sequence Policy Optimization (arXiv 2507.18071), equations 5 and 7; its bounds are those of section 5.1."""

CISPO = LossSpec(normaliser="tokens", clip="cispo", clip_low=1.0, clip_high=4.0)
"""Clipped importance weights, MiniMax-M1 (arXiv 2506.13585), equation 4. There is no lower bound; the upper one,
a ratio of 5, is that of ScaleRL (arXiv 2510.13786)."""

RLOO = LossSpec(ratio="product", scale="none", baseline="leave_one_out")
"""REINFORCE leave-one-out (arXiv 2402.14740): a sequence is one action. A divergence from the reference is
part of the loss, as in the other presets, not of the reward."""

PRESETS = MappingProxyType({"grpo": GRPO, "dr_grpo": DR_GRPO, "dapo": DAPO, "gspo": GSPO, "cispo": CISPO, "rloo": RLOO})


def resolve(algorithm: Algorithm) -> LossSpec:
    """The preset, with every setting that is given put in its place."""
    given = {name: value for name, value in algorithm if name != "preset" and value is not None}
    return replace(PRESETS[algorithm.preset], **given)
