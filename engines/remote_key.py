"""The API key of a remote server: read where `tandem serve` runs, and never written down."""

from __future__ import annotations

import os

from engines.config import EngineConfig
from engines.errors import ConfigError


def api_key_of(engine: str, config: EngineConfig) -> str:
    """Empty if the section names no variable; raises `ConfigError` if the one that it names is not set."""
    if not config.api_key_env:
        return ""
    key = os.environ.get(config.api_key_env, "")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        state = "holds no API key" if key else "is not set"
        raise ConfigError(
            f"engines.{engine}.api_key_env: the environment variable {config.api_key_env} {state}; export it where "
            "this command is started"
        )
    return key
