"""What Tandem tells this process, by its environment."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

TOKEN_VARIABLE = "TANDEM_ENGINE_TOKEN"  # noqa: S105  the variable's name, not a secret
BASE_VARIABLE = "TANDEM_BASE"
MAX_ADAPTERS_VARIABLE = "TANDEM_MAX_ADAPTERS"
MAX_LORA_RANK_VARIABLE = "TANDEM_MAX_LORA_RANK"
TARGET_MODULES_VARIABLE = "TANDEM_TARGET_MODULES"
NEVER_SAMPLED_VARIABLE = "TANDEM_NEVER_SAMPLED"


@dataclass(frozen=True)
class Settings:
    """`base` is the name of the bare base (`engine@0`); `never_sampled` are tokens that stand for image features."""

    token: str
    base: str
    max_adapters: int
    max_lora_rank: int
    target_modules: tuple[str, ...]
    never_sampled: tuple[str, ...]

    @classmethod
    def from_environment(cls) -> Settings:
        return cls(
            token=os.environ[TOKEN_VARIABLE],
            base=os.environ[BASE_VARIABLE],
            max_adapters=int(os.environ[MAX_ADAPTERS_VARIABLE]),
            max_lora_rank=int(os.environ[MAX_LORA_RANK_VARIABLE]),
            target_modules=tuple(json.loads(os.environ[TARGET_MODULES_VARIABLE])),
            never_sampled=tuple(json.loads(os.environ[NEVER_SAMPLED_VARIABLE])),
        )
