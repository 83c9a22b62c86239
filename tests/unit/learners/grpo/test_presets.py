"""Named losses, and settings that differ from them."""

from __future__ import annotations

import pytest

from learners.config import Algorithm
from learners.grpo.presets import CISPO, DAPO, DR_GRPO, GRPO, GSPO, PRESETS, RLOO, LossSpec, resolve


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_is_itself(name: str) -> None:
    assert resolve(Algorithm.model_validate({"preset": name})) == PRESETS[name]


def test_each_preset_is_another_loss() -> None:
    assert len({GRPO, DR_GRPO, DAPO, GSPO, CISPO, RLOO}) == len(PRESETS) == 6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ratio", "sequence"),
        ("normaliser", "constant"),
        ("clip", "cispo"),
        ("clip_low", 0.0),
        ("clip_high", 0.5),
        ("scale", "batch"),
        ("baseline", "leave_one_out"),
        ("old", "learner"),
        ("correction", "mask"),
        ("correction_level", "sequence"),
        ("correction_cap", 3.0),
        ("kl_beta", 0.04),
        ("normalise_each_reward", True),
        ("mask_truncated", True),
    ],
)
def test_a_setting_that_is_given_differs_from_the_preset_and_nothing_else_does(field: str, value: object) -> None:
    spec = resolve(Algorithm.model_validate({"preset": "dapo", field: value}))
    different = {name for name in LossSpec.__slots__ if getattr(spec, name) != getattr(DAPO, name)}
    assert different == {field}
    assert getattr(spec, field) == value
