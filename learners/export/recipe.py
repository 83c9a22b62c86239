"""What llm-compressor is asked to do, as its own recipe: one frozen value that the report repeats word for word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from engines.errors import BadRequest
from engines.profiles import FamilyProfile
from learners.config.export import Scheme

GROUP_SIZES = (128, 32)
"""In order of preference: a larger group has fewer scales."""
SCALED_NORMS = ("input_layernorm", "post_attention_layernorm")
"""What AWQ scales beside the linears: the norms whose outputs these read."""
_SMOOTHED = (
    (SCALED_NORMS[0], ("q_proj", "k_proj", "v_proj")),
    ("v_proj", ("o_proj",)),
    (SCALED_NORMS[1], ("gate_proj", "up_proj")),
    ("up_proj", ("down_proj",)),
)
"""What is divided by a scale, and the linears that are multiplied by it: llm-compressor's own for such a decoder."""
_FP8 = {"num_bits": 8, "type": "float", "symmetric": True}


def ignored(profile: FamilyProfile) -> tuple[str, ...]:
    """Linears that stay as they are: the head, the vision tower, and the projector."""
    return ("re:.*lm_head", *(f"re:{re.escape(prefix)}.*" for prefix in profile.vision_prefixes))


def pick_group_size(wanted: int | None, in_features: Iterable[int]) -> int:
    """`wanted`, else the largest that divides the inputs of every linear. Raises `BadRequest` if it does not."""
    widths = set(in_features)
    for size in GROUP_SIZES if wanted is None else (wanted,):
        if all(width % size == 0 for width in widths):
            return size
    tried = wanted or GROUP_SIZES[-1]
    odd = next(width for width in sorted(widths) if width % tried)
    raise BadRequest(
        f"group_size: {tried} does not divide the {odd} inputs of a linear of this model: take one that divides "
        f"{', '.join(map(str, sorted(widths)))}",
        param="group_size",
    )


def recipe_for(scheme: Scheme, profile: FamilyProfile, group_size: int | None) -> dict[str, Any]:
    """Modifiers by name, in a stage of their own. `group_size` is of 4-bit weights; None for others."""
    group = {"targets": ["Linear"], "weights": _weights(scheme, group_size)}
    if scheme is Scheme.FP8:
        group["input_activations"] = {**_FP8, "strategy": "token", "dynamic": True}
    settings = {"targets": ["Linear"], "ignore": list(ignored(profile)), "config_groups": {"group_0": group}}
    return {"quantization_stage": {"quantization_modifiers": _modifiers(scheme, settings, profile)}}


def _weights(scheme: Scheme, group_size: int | None) -> Mapping[str, Any]:
    if scheme is Scheme.FP8:
        return {**_FP8, "strategy": "channel", "dynamic": False}
    symmetric = scheme is not Scheme.W4A16_AWQ
    return {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group_size}


def _modifiers(scheme: Scheme, settings: dict[str, Any], profile: FamilyProfile) -> dict[str, Any]:
    match scheme:
        case Scheme.W4A16_GPTQ:
            return {"GPTQModifier": settings}
        case Scheme.W4A16_AWQ:
            awq = {"duo_scaling": "both", "mappings": list(_mappings(profile))}
            return {"AWQModifier": awq, "QuantizationModifier": settings}
        case _:
            return {"QuantizationModifier": settings}


def _mappings(profile: FamilyProfile) -> Iterator[dict[str, Any]]:
    """Of the language model alone: a vision tower may have linears of the same names without such norms."""
    (prefix,) = map(re.escape, profile.language_prefixes)
    for source, linears in _SMOOTHED:
        yield {
            "smooth_layer": f"re:{prefix}.*{source}$",
            "balance_layers": [f"re:{prefix}.*{linear}$" for linear in linears],
        }
