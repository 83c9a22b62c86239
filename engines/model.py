"""The model that a section of the configuration names: that it is there, and its family."""

from __future__ import annotations

from pathlib import Path

from engines.config import EngineConfig
from engines.errors import ConfigError, EngineDown
from engines.profiles import PROFILES, FamilyProfile, profile_of

DEFAULT_FAMILY = "qwen3_vl"
"""Of a hub id whose section does not say: its config.json is not here yet."""


def check_model(name: str, model: str) -> None:
    """Raises `EngineDown` for an absolute path that is no directory; a back end would take it for a hub id."""
    if Path(model).is_absolute() and not Path(model).is_dir():
        raise EngineDown(f"{model} is no directory; check engines.{name}.model")


def family_of(name: str, config: EngineConfig) -> FamilyProfile:
    """The model's family; raises `ConfigError` if its config.json says another than the section."""
    if not config.model_path().is_dir():
        return PROFILES[DEFAULT_FAMILY if config.family == "auto" else config.family]
    profile = profile_of(config.model_path())
    if config.family not in ("auto", profile.name):
        raise ConfigError(f"engines.{name}.family: {config.model} is a {profile.name}, not a {config.family}")
    return profile
