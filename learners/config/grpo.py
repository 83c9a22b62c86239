"""The settings of asynchronous GRPO."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from engines.config import Section
from learners.config.job import JobConfig
from rollout.config import RewardConfig, RolloutConfig

Preset = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"]


class Algorithm(Section):
    """The loss: a named preset, and what is to differ from it (an empty setting is the preset's)."""

    preset: Preset = "grpo"
    """Group-relative policy optimization or one of its kin."""
    ratio: Literal["token", "sequence"] | None = None
    """Of what the importance ratio to the old policy is taken."""
    normaliser: Literal["sequence", "tokens", "constant"] | None = None
    """A mean over each sequence, then over sequences; over all tokens of a step; or a sum over a constant length."""
    clip: Literal["ppo", "cispo"] | None = None
    """Where the ratio is clipped: with its gradient (PPO), or only as a weight (CISPO)."""
    clip_low: float | None = Field(None, ge=0)
    """The ratio is kept above 1 - clip_low."""
    clip_high: float | None = Field(None, ge=0)
    """The ratio is kept below 1 + clip_high."""
    scale: Literal["group", "batch", "none"] | None = None
    """By whose standard deviation advantages are divided."""
    baseline: Literal["mean", "leave_one_out"] | None = None
    """What is taken off a reward: its group's mean, or that of the group's others."""
    old: Literal["learner", "rollout"] = "rollout"
    """Which log-probabilities the ratio is to: the learner's own of before the step, or those sampled with."""
    correction: Literal["none", "truncate", "mask"] = "truncate"
    """With `old = "learner"`: how the importance weight learner / rollout is bounded."""
    correction_level: Literal["token", "sequence"] = "token"
    """Of what that weight is taken."""
    correction_cap: float = Field(2.0, gt=1)
    """Its bound: weights above are cut to it, or their tokens are left out."""
    kl_beta: float = Field(0.0, ge=0)
    """Weight of the k3 estimate of the divergence from the base without adapter."""
    normalise_each_reward: bool = False
    """Normalise every reward function within its group before they are summed (GDPO)."""
    mask_truncated: bool = False
    """Trajectories that were cut off carry no loss."""


class GrpoConfig(JobConfig):
    """GRPO on images and text: groups of answers are sampled from engines while the adapter learns from them."""

    path_fields: ClassVar[tuple[str, ...]] = (*JobConfig.path_fields, "eval_data")

    method: Literal["grpo"] = "grpo"
    """The training method."""
    name: str = Field("grpo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """The job's name, and that of its directory under `root` unless `output` names another. Engines know the job's
    versions by it."""
    learning_rate: float = Field(5e-4, gt=0, le=1)
    """Of the first step."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """Whether it decays to zero."""
    weight_decay: float = Field(0.0, ge=0)
    """Of the optimizer, AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is cut to this length."""
    prompts_per_step: int = Field(16, ge=1)
    """Groups of one optimizer step."""
    group_size: int = Field(8, ge=2, le=256)
    """Answers sampled for one prompt."""
    micro_batch_tokens: int = Field(8192, ge=64)
    """Tokens, padding included, of what is computed at once; gradients of a step's pieces add up."""
    max_staleness: int = Field(1, ge=0, le=62)
    """How many optimizer steps a sample's version may be behind when it is learned from. 0: synchronous."""
    algorithm: Algorithm = Field(default_factory=Algorithm)
    """The loss."""
    rewards: tuple[RewardConfig, ...] = Field((RewardConfig(name="exact_match"),), min_length=1)
    """What a good answer is worth: the weighted sum of these functions."""
    rollout: RolloutConfig
    """Where and how the job samples."""
    probe_size: int = Field(16, ge=1, le=64)
    """How many fixed prompts each push is proven on, and each checkpoint's manifest carries. A quantized engine's error
    is of single uncertain tokens: over few prompts its mean is as large as theirs."""
    max_mismatch: float = Field(0.02, gt=0)
    """The run fails if engine and learner differ by more on what an adapter changes (mean absolute log-probability)."""
    eval_data: str | None = None
    """Rows that are never trained on: every checkpoint's greedy answers to them are scored by the same rewards, and the
    best checkpoint is the one with the highest. Empty: the rewards of training since the checkpoint before say it."""
    eval_size: int = Field(128, ge=1)
    """How many rows of `eval_data` are asked, the first ones."""
    early_stop_evals: int | None = Field(None, ge=1)
    """End after so many evaluations in a row that are no better than the best one."""

    @property
    def num_slots(self) -> int:
        """Versions of the job that a replica holds at most: of each staleness, the newest, and one on its way."""
        return self.max_staleness + 2

    @model_validator(mode="after")
    def _fits(self) -> GrpoConfig:
        keys = [reward.key for reward in self.rewards]
        if len(set(keys)) < len(keys):
            raise ValueError("rewards: two have the same name; give them labels")
        if self.early_stop_evals is not None and self.eval_data is None:
            raise ValueError("early_stop_evals: needs eval_data to judge by")
        if self.rollout.min_group > self.group_size:
            raise ValueError("rollout.min_group: is larger than group_size")
        own = self.rollout.own
        if own is not None and own.reserved_for_rollout < self.num_slots:
            raise ValueError(
                f"rollout.own.reserved_for_rollout: is {own.reserved_for_rollout}, and max_staleness = "
                f"{self.max_staleness} needs {self.num_slots} (max_loras too)"
            )
        return self
