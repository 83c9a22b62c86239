"""From `[[rewards]]` to reward functions: the built-in ones by name, own ones by entry point `tandem.rewards`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points

from pydantic import ValidationError

from engines.errors import BadRequest
from rollout.config import RewardConfig
from rollout.rewards.anls import Anls
from rollout.rewards.base import BuiltIn, MakeReward, Reward
from rollout.rewards.boxes import BoxIou
from rollout.rewards.json_field import JsonField
from rollout.rewards.judge import Judge
from rollout.rewards.numeric import Numeric
from rollout.rewards.shape import Length, Repetition
from rollout.rewards.text import ExactMatch, Regex
from rollout.types import Prompt

GROUP = "tandem.rewards"
BUILT_IN: dict[str, type[BuiltIn]] = {
    "exact_match": ExactMatch,
    "regex": Regex,
    "numeric": Numeric,
    "json_field": JsonField,
    "anls": Anls,
    "length": Length,
    "repetition": Repetition,
    "box_iou": BoxIou,
    "judge": Judge,
}


def check_rewards(configs: Sequence[RewardConfig]) -> None:
    """Checks names, and the options of built-in rewards; own ones are found but not loaded, so nothing heavy is.

    Raises `BadRequest` naming `rewards[i].name` or `rewards[i].options.x`.
    """
    for index, config in enumerate(configs):
        if config.name in BUILT_IN:
            _make(BUILT_IN[config.name], config, index)
        else:
            _find_own(config.name, index)


def check_fields(configs: Sequence[RewardConfig], prompts: Iterable[Prompt]) -> None:
    """Checks that every row has what the built-in rewards read; raises `BadRequest` naming the first that does not."""
    made = [_make(BUILT_IN[config.name], config, i) for i, config in enumerate(configs) if config.name in BUILT_IN]
    checked = [reward for reward in made if isinstance(reward, BuiltIn)]
    for prompt in prompts:
        for reward in checked:
            reward.check_row(prompt)


def make_rewards(configs: Sequence[RewardConfig]) -> tuple[Reward, ...]:
    """The functions, in the order of `configs`; loads the modules of own ones. Raises `BadRequest`."""
    return tuple(
        _make(BUILT_IN.get(config.name) or _load_own(config.name, index), config, index)
        for index, config in enumerate(configs)
    )


def _make(make: MakeReward, config: RewardConfig, index: int) -> Reward:
    where = f"rewards[{index}].options"
    try:
        reward = make(**config.options)
    except ValidationError as error:
        problems = [(".".join([where, *map(str, item["loc"])]), item["msg"]) for item in error.errors()]
        lines = [f"{path}: {message} (reward '{config.name}')" for path, message in problems]
        raise BadRequest("\n".join(lines), param=problems[0][0]) from error
    except (TypeError, ValueError) as error:
        raise BadRequest(f"{where}: '{config.name}' does not take them: {error}", param=where) from error
    if not callable(reward):
        raise BadRequest(
            f"rewards[{index}].name: '{config.name}' made a {type(reward).__name__} of its options; its entry point "
            "has to return a function of a prompt and a trajectory",
            param=f"rewards[{index}].name",
        )
    return reward


def _find_own(name: str, index: int) -> EntryPoint:
    found = entry_points(group=GROUP)
    if name not in found.names:
        known = ", ".join([*BUILT_IN, *sorted(found.names)])
        raise BadRequest(
            f"rewards[{index}].name: '{name}' is none of {known}; correct it, or install the package that has it as an "
            f"entry point of the group {GROUP}",
            param=f"rewards[{index}].name",
        )
    return found[name]


def _load_own(name: str, index: int) -> MakeReward:
    entry = _find_own(name, index)
    try:
        make: MakeReward = entry.load()
    except (ImportError, AttributeError) as error:
        raise BadRequest(
            f"rewards[{index}].name: the entry point '{name}' = '{entry.value}' could not be loaded: {error}; correct "
            "its package",
            param=f"rewards[{index}].name",
        ) from error
    return make
