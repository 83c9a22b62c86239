from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.errors import BadRequest
from engines.profiles import PROFILES, FamilyProfile, profile_of

QWEN = PROFILES["qwen3_vl"]


def test_family_is_read_from_the_models_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3VLForConditionalGeneration"]}))
    assert profile_of(tmp_path) is QWEN


def test_unknown_family_names_those_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(BadRequest, match=r"LlamaForCausalLM.*Known: qwen3_vl"):
        profile_of(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"architectures": []}', '{"architectures": [1]}', "[" * 100_000])
def test_malformed_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadRequest, match=r"config\.json"):
        profile_of(tmp_path)


def test_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"config\.json cannot be read"):
        profile_of(tmp_path)


def test_only_language_linears_are_targets() -> None:
    assert QWEN.is_target("model.language_model.layers.3.mlp.down_proj")
    assert not QWEN.is_target("model.language_model.embed_tokens")
    assert not QWEN.is_target("model.visual.blocks.0.attn.q_proj")
    assert QWEN.is_vision("model.visual.blocks.0.attn.qkv")


@pytest.mark.parametrize(
    ("checkpoint", "engine"), [("self_attn.k_proj", "self_attn.qkv_proj"), ("mlp.up_proj", "mlp.gate_up_proj"),
                               ("self_attn.o_proj", "self_attn.o_proj")]
)  # fmt: skip
def test_checkpoint_and_engine_names_meet(checkpoint: str, engine: str) -> None:
    ours = QWEN.engine_module(f"model.language_model.layers.0.{checkpoint}")
    assert ours == QWEN.engine_module(f"language_model.model.layers.0.{engine}") == f"layers.0.{engine}"


def test_sampling_never_needs_a_vision_token() -> None:
    assert "<|image_pad|>" in QWEN.vision_tokens
    assert "<|box_start|>" not in QWEN.vision_tokens


def test_a_checkpoints_names_become_the_models() -> None:
    internvl = PROFILES["internvl"]
    stored = "language_model.model.layers.0.self_attn.q_proj"
    assert internvl.is_target(internvl.model_module(stored))
    assert internvl.model_module(internvl.model_module(stored)) == internvl.model_module(stored)
    assert internvl.is_vision(internvl.model_module("vision_tower.encoder.layer.0.attention.q_proj"))
    assert internvl.is_vision(internvl.model_module("multi_modal_projector.linear_1"))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_peft_finds_no_linear_of_the_vision_tower(profile: FamilyProfile) -> None:
    assert {target.rsplit(".", 1)[-1] for target in profile.peft_targets} == set(profile.target_modules)
    tower = [f"{prefix}encoder.layer.0.attention.q_proj" for prefix in profile.vision_prefixes]
    if profile.name == "internvl":
        assert not [name for name in tower for target in profile.peft_targets if name.endswith(f".{target}")]
