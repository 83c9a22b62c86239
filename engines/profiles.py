"""Model families: how the modules of a checkpoint are called, and which of them an adapter may touch.

A frozen table, one row a family. Nothing here reads weights. To add a family: one more row in `PROFILES`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engines.errors import BadRequest

MAX_CONFIG_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class FamilyProfile:
    """One model family.

    `language_prefixes` and `vision_prefixes` (tower and projector) are those of the model's module names
    (`model.language_model.layers.0.self_attn.q_proj`); PEFT writes `adapter_prefix` before such a name. A checkpoint
    may have other ones: `stored_prefixes` pairs a prefix there with the model's.
    `target_modules` are the language linears that we serve; `peft_targets` are what PEFT is told so that it finds them
    and none of the vision tower's, which may have linears of the same names.
    `vision_tokens` stand for image features: a model may read them but must never sample them. Engines call the same
    modules by `engine_prefixes`, and fuse some: `fused_modules` pairs a module with the one it is part of there.
    """

    name: str
    architectures: tuple[str, ...]
    target_modules: tuple[str, ...]
    peft_targets: tuple[str, ...]
    language_prefixes: tuple[str, ...]
    vision_prefixes: tuple[str, ...]
    vision_tokens: tuple[str, ...]
    engine_prefixes: tuple[str, ...]
    fused_modules: tuple[tuple[str, str], ...]
    stored_prefixes: tuple[tuple[str, str], ...] = ()
    adapter_prefix: str = "base_model.model."

    def model_module(self, stored: str) -> str:
        """The model's name of what a checkpoint calls `stored`."""
        for prefix, of_model in self.stored_prefixes:
            if stored.startswith(prefix):
                return of_model + stored.removeprefix(prefix)
        return stored

    def is_target(self, module: str) -> bool:
        """Whether an adapter may touch `module` (the model's name): a language linear that we serve."""
        return module.startswith(self.language_prefixes) and module.rsplit(".", 1)[-1] in self.target_modules

    def engine_module(self, module: str) -> str:
        """One name for a module, be it given as the model's or as an engine's: `layers.0.self_attn.qkv_proj`."""
        for prefix in (*self.language_prefixes, *self.engine_prefixes):
            module = module.removeprefix(prefix)
        parent, dot, leaf = module.rpartition(".")
        return parent + dot + dict(self.fused_modules).get(leaf, leaf)

    def is_vision(self, module: str) -> bool:
        return module.startswith(self.vision_prefixes)


_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_FUSED = (
    ("q_proj", "qkv_proj"),
    ("k_proj", "qkv_proj"),
    ("v_proj", "qkv_proj"),
    ("gate_proj", "gate_up_proj"),
    ("up_proj", "gate_up_proj"),
)

_QWEN3_VL = FamilyProfile(
    name="qwen3_vl",
    architectures=("Qwen3VLForConditionalGeneration",),
    target_modules=_LINEARS,
    peft_targets=_LINEARS,
    language_prefixes=("model.language_model.",),
    vision_prefixes=("model.visual.", "visual."),
    vision_tokens=("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    engine_prefixes=("language_model.model.",),
    fused_modules=_FUSED,
)

_INTERNVL = FamilyProfile(
    name="internvl",
    architectures=("InternVLForConditionalGeneration",),
    target_modules=_LINEARS,
    peft_targets=(
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    ),
    language_prefixes=("model.language_model.",),
    vision_prefixes=("model.vision_tower.", "vision_tower.", "model.multi_modal_projector.", "multi_modal_projector."),
    vision_tokens=("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    engine_prefixes=("language_model.model.",),
    fused_modules=_FUSED,
    stored_prefixes=(
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ),
)

PROFILES: MappingProxyType[str, FamilyProfile] = MappingProxyType({p.name: p for p in (_QWEN3_VL, _INTERNVL)})


def profile_of(model_dir: Path) -> FamilyProfile:
    """The family that `model_dir`/config.json names. Raises `BadRequest` for an unreadable or unknown one."""
    architectures = architectures_of(model_dir)
    for profile in PROFILES.values():
        if set(architectures) & set(profile.architectures):
            return profile
    known = ", ".join(f"{p.name} ({', '.join(p.architectures)})" for p in PROFILES.values())
    raise BadRequest(
        f"{model_dir} has the architecture {', '.join(architectures)}, which is of no known family. Known: {known}",
        param="model",
    )


def read_config(model_dir: Path) -> dict[str, Any]:
    """`model_dir`/config.json. Raises `BadRequest` if it is no JSON object."""
    path = model_dir / "config.json"
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(
            f"{path} cannot be read as JSON: expected a model directory as transformers saves it", param="model"
        ) from error
    if not isinstance(config, dict):
        raise BadRequest(f"{path} holds no JSON object: it is not a transformers model's config", param="model")
    return config


def architectures_of(model_dir: Path) -> tuple[str, ...]:
    """What `model_dir`/config.json names. Raises `BadRequest` if it names none."""
    names = read_config(model_dir).get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise BadRequest(
            f"{model_dir / 'config.json'} names no 'architectures': it is not a transformers model's config",
            param="model",
        )
    return tuple(names)
