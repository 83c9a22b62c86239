"""Refuses at an engine's start what its back end cannot do on this machine, before a process is spawned."""

from __future__ import annotations

from engines.config import EngineConfig
from engines.errors import BadRequest, ConfigError
from engines.profiles import profile_of
from engines.schemes.machine import MachineKind
from engines.schemes.rules import Combination, rule_against
from engines.schemes.scheme import scheme_of

BY_URL = frozenset({"remote"})
"""Back ends that are servers of somebody else, on a machine that is not ours to look at."""


def combination_of(name: str, config: EngineConfig, machine: MachineKind) -> Combination:
    """What section `name` asks for. Raises `ConfigError` for a config.json that cannot be read."""
    is_elsewhere = config.kind in BY_URL
    return Combination(
        kind=config.kind,
        family=_family(config),
        scheme=scheme_of(name, config),
        machine=MachineKind.ELSEWHERE if is_elsewhere else machine,
    )


def check_scheme(name: str, config: EngineConfig, machine: MachineKind) -> None:
    """Raises `ConfigError` that says what is refused, why, and what to do. Starts nothing."""
    asked = combination_of(name, config, machine)
    rule = rule_against(asked)
    if rule is not None and not rule.base_is_served:
        of_family = f" {asked.family}" if rule.families else ""
        raise ConfigError(
            f"engines.{name}.model: {asked.kind} cannot serve{of_family} {asked.scheme} "
            f"on {asked.machine} ({config.model}): {rule.why}; {rule.instead}",
            param=f"engines.{name}.model",
        )


def _family(config: EngineConfig) -> str:
    """By the model's own config.json if it is here; empty for a family that is not known."""
    try:
        return profile_of(config.model_path()).name
    except BadRequest:
        return "" if config.family == "auto" else config.family
