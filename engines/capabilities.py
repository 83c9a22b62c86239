"""What an engine's server can do. Ours can all of it; what a server elsewhere can't, its probe finds out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Ability(StrEnum):
    """Of one server. The first seven are asked for by a request's fields, the last three by Tandem."""

    IMAGES = "images"
    STREAMING = "streaming"
    LOGPROBS = "logprobs"
    TOP_LOGPROBS = "top_logprobs"
    N = "n"
    SEED = "seed"
    TOKEN_IDS = "token_ids"  # noqa: S105  a field's name, not a secret
    ADAPTERS = "adapters"
    ABORTS = "aborts"
    REQUEST_IDS = "request_ids"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server can't do, and what could not be found out. It can everything else."""

    missing: frozenset[Ability] = frozenset()
    unknown: frozenset[Ability] = frozenset()

    def words(self) -> str:
        """`no adapters, images; unknown: aborts`; empty if it can everything."""
        parts = []
        if self.missing:
            parts.append(f"no {_listed(self.missing)}")
        if self.unknown:
            parts.append(f"unknown: {_listed(self.unknown)}")
        return "; ".join(parts)


ALL = Capabilities()
"""It can everything."""


def in_order(abilities: frozenset[Ability]) -> tuple[Ability, ...]:
    """As `Ability` lists them."""
    return tuple(ability for ability in Ability if ability in abilities)


def _listed(abilities: frozenset[Ability]) -> str:
    return ", ".join(in_order(abilities))
