"""`adapter_config.json` as PEFT writes it, down to what an engine can honour.

A feature that engines do not implement is refused rather than ignored: the adapter would answer, but as another model.
Names and meanings: peft.LoraConfig.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import pydantic
from pydantic import ConfigDict, Field, StringConstraints

from engines.adapter.files import parse_object
from engines.errors import BadRequest

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 1 << 16

# PEFT and engines take these as regular expressions: plain names only, since nobody bounds a foreign pattern.
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]+$", max_length=256, strict=True)]
Rank = Annotated[int, Field(ge=1, le=MAX_RANK, strict=True)]
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_SAFE_INITS = frozenset({"gaussian", "eva", "orthogonal", "true", "false"})

_UNSUPPORTED = {
    "lora_bias": "a bias in LoRA is not served: train with lora_bias=False",
    "modules_to_save": "whole modules are not served from an adapter: train without modules_to_save",
    "trainable_token_indices": "trained embeddings are not served: train without trainable_token_indices",
    "target_parameters": "LoRA on bare parameters is not served: name linear modules in target_modules",
    "alora_invocation_tokens": "activated LoRA (aLoRA) is not served: train a plain LoRA",
    "layer_replication": "layer_replication changes the base's layers: train without it",
    "use_qalora": "QALoRA is not served: train a plain LoRA",
    "use_bdlora": "block-diagonal LoRA is not served: train a plain LoRA",
    "arrow_config": "Arrow routing is not served: save a plain LoRA",
    "rank_pattern": "ranks of single modules are ignored by some engines: train with one r for all",
    "alpha_pattern": "alphas of single modules are ignored by some engines: train with one lora_alpha for all",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out) are not served: this family has linear modules only",
}

_IGNORED = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
        "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
        "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_version",
        "qalora_group_size", "revision", "runtime_config",
    }
)  # fmt: skip
"""Of training or of documentation only: what is served does not depend on them."""


class PeftConfig(pydantic.BaseModel):
    """The fields that decide what an adapter does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    peft_type: str
    task_type: str | None = None
    r: Rank
    lora_alpha: Alpha
    target_modules: tuple[PlainName, ...] = Field(min_length=1, max_length=4096)
    bias: str = "none"
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str | None = True

    def targets_touching(self, module: str) -> tuple[str, ...]:
        """Those entries of `target_modules` by which PEFT would touch `module`."""
        return tuple(entry for entry in self.target_modules if module == entry or module.endswith(f".{entry}"))

    @property
    def scale(self) -> float:
        """Of the product B A, as PEFT computes it."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


def parse_peft_config(data: bytes) -> PeftConfig:
    """Raises `BadRequest` for what is malformed, and for every feature that would not be served."""
    config = parse_mergeable_config(data)
    if config.use_dora:
        raise _refusal(
            "use_dora",
            "DoRA is not served from an adapter: train with use_dora=False, or merge it into its base with "
            "`tandem versions export`",
        )
    return config


def parse_mergeable_config(data: bytes) -> PeftConfig:
    """As `parse_peft_config`, of an adapter that is to be merged: it may be a DoRA."""
    values = parse_object(data, CONFIG_FILE)
    if values.get("peft_type") != "LORA":
        raise _refusal("peft_type", f"only LORA is served, not {_short(values.get('peft_type'))}: train a LoRA")
    if isinstance(values.get("target_modules"), str):
        raise _refusal("target_modules", "a pattern is not accepted: list the modules' names, like q_proj")
    config = _parse(_without_the_rest(values))
    _check_served(config)
    return config


def _without_the_rest(values: Mapping[str, object]) -> dict[str, object]:
    kept = {}
    for key, value in values.items():
        if key in PeftConfig.model_fields:
            kept[key] = value
        elif value and key in _UNSUPPORTED:
            raise _refusal(key, _UNSUPPORTED[key])
        elif value and key not in _IGNORED:
            raise _refusal(key, "is not known here and might change what the adapter does: train without it")
    for key in ("bias", "use_rslora", "use_dora"):
        if kept.get(key, ...) is None:
            del kept[key]
    return kept


def _parse(values: Mapping[str, object]) -> PeftConfig:
    try:
        return PeftConfig.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _refusal(where[:200], first["msg"][:200]) from error


def _check_served(config: PeftConfig) -> None:
    if config.task_type not in (None, "CAUSAL_LM"):
        raise _refusal("task_type", f"{_short(config.task_type)} is not served: save the adapter with CAUSAL_LM")
    if config.bias != "none":
        raise _refusal("bias", f"{_short(config.bias)} is not served: train with bias='none'")
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower() not in _SAFE_INITS:
        raise _refusal(
            "init_lora_weights",
            f"{_short(init)} changes the base's weights too: convert the adapter to a plain LoRA with PEFT's "
            "path_initial_model_for_weight_conversion",
        )


def _refusal(field: str, reason: str) -> BadRequest:
    return BadRequest(f"{CONFIG_FILE}: {field}: {reason}")


def _short(value: object) -> str:
    return repr(value)[:80]
