"""What llm-compressor is told: the language linears are quantized, and nothing else is."""

import re

import pytest

from engines.errors import BadRequest
from engines.profiles import PROFILES, FamilyProfile
from learners.config import Scheme
from learners.export.recipe import ignored, pick_group_size, recipe_for

QUANTIZED = [scheme for scheme in Scheme if scheme is not Scheme.NONE]


def is_ignored(module: str, profile: FamilyProfile) -> bool:
    return any(re.match(pattern.removeprefix("re:"), module) for pattern in ignored(profile))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_head_tower_and_projector_are_left_alone_and_every_target_is_not(profile: FamilyProfile) -> None:
    assert is_ignored("lm_head", profile)
    for prefix in profile.vision_prefixes:
        assert is_ignored(f"{prefix}blocks.0.attn.qkv", profile)
    for target in profile.target_modules:
        assert not is_ignored(f"{profile.language_prefixes[0]}layers.0.self_attn.{target}", profile)


@pytest.mark.parametrize(("widths", "size"), [((256, 512), 128), ((256, 96), 32), ((4096,), 128)])
def test_the_largest_group_that_divides_all_inputs_is_taken(widths: tuple[int, ...], size: int) -> None:
    assert pick_group_size(None, widths) == size


@pytest.mark.parametrize("wanted", [None, 128])
def test_a_group_that_does_not_divide_is_refused_with_the_inputs(wanted: int | None) -> None:
    with pytest.raises(BadRequest, match="does not divide the 80 inputs"):
        pick_group_size(wanted, (128, 80))


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_only_grouped_schemes_have_groups_and_only_fp8_quantizes_inputs(scheme: Scheme) -> None:
    size = 32 if scheme.is_grouped else None
    modifiers = recipe_for(scheme, PROFILES["qwen3_vl"], size)["quantization_stage"]["quantization_modifiers"]
    settings = next(settings for settings in modifiers.values() if "config_groups" in settings)
    group = settings["config_groups"]["group_0"]
    assert group["weights"].get("group_size") == size
    assert ("input_activations" in group) == (scheme is Scheme.FP8)
