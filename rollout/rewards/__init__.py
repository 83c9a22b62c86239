"""Rewards: named functions of a trajectory, their weighted sum, and the process in which they are computed.

A reward is made from its options once, `make(**options)`, and then called with a prompt and a trajectory. Every
built-in one says how good an answer is, from 0 to 1. Own ones are entry points of the group `tandem.rewards`: any
callable that takes the options as keywords and returns such a function, plain or async. Configuration errors are
`BadRequest`s that name `rewards[i].options.x`; what goes wrong with one trajectory is a reason why it has no score.
"""

from rollout.rewards.registry import check_fields, check_rewards
from rollout.rewards.scorer import Scorer

__all__ = ["Scorer", "check_fields", "check_rewards"]
