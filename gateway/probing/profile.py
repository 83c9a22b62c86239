"""A family profile of what was found out, for a model that has none; and the row of `PROFILES` that it would be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

from engines.inspection import Inspection, Part
from engines.profiles import FamilyProfile

FUSED = (
    ("q_proj", "qkv_proj"),
    ("k_proj", "qkv_proj"),
    ("v_proj", "qkv_proj"),
    ("gate_proj", "gate_up_proj"),
    ("up_proj", "gate_up_proj"),
)
"""How engines join linears of most language models."""


def profile_for(inspection: Inspection, architectures: tuple[str, ...]) -> FamilyProfile | None:
    """As far as transformers tells; how an engine calls the modules is not known yet. None without language linears."""
    language = inspection.linears(Part.LANGUAGE)
    if language is None or not inspection.layers:
        return None
    others = (inspection.linears(part) for part in (Part.VISION, Part.PROJECTOR))
    return FamilyProfile(
        name=inspection.model_type,
        architectures=architectures,
        target_modules=language.leaves,
        peft_targets=inspection.peft_targets,
        language_prefixes=(_parent(inspection.layers),),
        vision_prefixes=tuple(part.prefix for part in others if part is not None and part.prefix),
        vision_tokens=inspection.vision_tokens,
        engine_prefixes=(),
        fused_modules=(),
        stored_prefixes=_stored(inspection),
    )


def with_engine_names(profile: FamilyProfile, layers: str, engine_modules: Iterable[str]) -> FamilyProfile:
    """With what an engine's own names of matched modules tell: their prefix, and which linears it joins."""
    names = tuple(engine_modules)
    marker = layers.removeprefix(_parent(layers))
    prefixes = dict.fromkeys(name[: name.index(marker)] for name in names if marker in name)
    leaves = {name.rpartition(".")[2] for name in names}
    fused = tuple((part, whole) for part, whole in FUSED if part in profile.target_modules and whole in leaves)
    return replace(profile, engine_prefixes=tuple(prefixes), fused_modules=fused)


def row_of(profile: FamilyProfile) -> str:
    """Python text for `engines/profiles.py`."""
    values = {
        field.name: value for field in fields(profile) if (value := getattr(profile, field.name)) != field.default
    }
    return "\n".join(("FamilyProfile(", *(f"    {name}={_text(value)}," for name, value in values.items()), ")"))


def _stored(inspection: Inspection) -> tuple[tuple[str, str], ...]:
    stored, layers = inspection.stored_layers, inspection.layers
    return ((_parent(stored), _parent(layers)),) if stored and stored != layers else ()


def _parent(layers: str) -> str:
    """`model.language_model.layers.` -> `model.language_model.`"""
    return layers[: layers.rstrip(".").rfind(".") + 1]


def _text(value: object) -> str:
    return repr(value).replace("'", '"')
