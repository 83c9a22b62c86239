"""The families that a toy can be of. To add one: a module with a class, named here."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from learners.toy.families.internvl import InternVlToy
from learners.toy.families.protocol import Forward, ToyFamily
from learners.toy.families.qwen3_vl import Qwen3VlToy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["FAMILIES", "Forward", "ToyFamily", "family_of"]

_ALL: tuple[ToyFamily, ...] = (Qwen3VlToy(), InternVlToy())
FAMILIES: MappingProxyType[str, ToyFamily] = MappingProxyType({family.name: family for family in _ALL})


def family_of(model: PreTrainedModel) -> ToyFamily:
    """By what its configuration calls itself; raises `KeyError` for a model that is no toy."""
    return FAMILIES[model.config.model_type]
