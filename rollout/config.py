"""The `[rollout]` and `[[rewards]]` sections of a job: where and how it samples, and what a good answer is worth."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from engines.config import EngineConfig, Section


class RewardConfig(Section):
    """One reward function of a job. The reward is the sum of weight x value over all of them."""

    name: str
    """A built-in function (`exact_match`, `regex`, `numeric`, `json_field`, `anls`, `length`, `repetition`,
    `box_iou`, `judge`), or that of an entry point `tandem.rewards`."""
    label: str = ""
    """How events call it; empty: its name. Two of the same name need labels."""
    weight: float = Field(1.0, allow_inf_nan=False)
    """Its share of the sum; negative for a penalty."""
    veto: bool = False
    """Instead of adding to the sum: where the value is 0 or less, the whole reward is `veto_reward`."""
    veto_reward: float = Field(0.0, allow_inf_nan=False)
    """What a vetoed trajectory gets."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Handed to the function; each says which it takes."""

    @property
    def key(self) -> str:
        return self.label or self.name


class RolloutConfig(Section):
    """Where a job samples, how many groups at a time, and how long it waits."""

    engine: str = ""
    """The serving engine to be a guest on, by its name in the gateway's configuration. Empty: engines of its own."""
    installation: str = ""
    """Whose engine it is, where several installations share one Ray; empty: the only one."""
    own: EngineConfig | None = None
    """The engines that the job starts for itself and ends with it. Excludes `engine`."""
    ray_address: str = "auto"
    """The cluster; inside `ray job submit` it is the job's own. Empty: one that is started for the job."""
    num_workers: int = Field(1, ge=1, le=64)
    """Ray actors that ask engines and compute rewards."""
    max_running: int = Field(16, ge=1, le=4096)
    """Groups being sampled at once, over all workers. As a guest: the most; the cap adapts below it."""
    users_factor: float = Field(1.15, gt=1.0)
    """As a guest: how much slower than without training users' first tokens, and those after, may come (p95)."""
    temperature: float = Field(1.0, gt=0, le=2)
    """Of sampling; the learner's log-probabilities are of the same temperature."""
    max_new_tokens: int = Field(16, ge=1)
    """Of one turn."""
    environment: str = "single_turn"
    """A built-in environment, or that of an entry point `tandem.environments`."""
    environment_options: dict[str, Any] = Field(default_factory=dict)
    """Handed to the environment."""
    max_turns: int = Field(1, ge=1, le=64)
    """Turns of one trajectory; the environment may end it earlier."""
    request_timeout_s: float = Field(60.0, gt=0)
    """One request to an engine."""
    group_timeout_s: float = Field(180.0, gt=0)
    """A whole group with its retries and rewards; afterwards its prompt is sampled again, from another place."""
    environment_timeout_s: float = Field(30.0, gt=0)
    """One reply of the environment."""
    reward_timeout_s: float = Field(30.0, gt=0)
    """All rewards of one trajectory."""
    max_retries: int = Field(2, ge=0, le=16)
    """How often one sample is asked for again, on another replica where there is one."""
    min_group: int = Field(2, ge=2)
    """A group that lost members is used if so many are left; else its prompt is sampled again."""
    max_attempts: int = Field(3, ge=1)
    """How often a prompt may fail by itself (refused, not to be scored) before it is given up, which is counted and
    said. What was away meanwhile (an engine, a worker, a judge) is not counted against it."""

    @model_validator(mode="after")
    def _one_place(self) -> RolloutConfig:
        if bool(self.engine) == (self.own is not None):
            raise ValueError("give either engine (a guest on a serving engine) or own (engines of the job's own)")
        return self

    @model_validator(mode="after")
    def _own_is_ours(self) -> RolloutConfig:
        if self.own is not None and not self.own.num_slots:
            raise ValueError("own.kind: a remote server takes no adapters, so that nothing is learned from its samples")
        return self

    @property
    def is_guest(self) -> bool:
        return bool(self.engine)
