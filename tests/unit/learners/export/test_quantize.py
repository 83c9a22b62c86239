"""What comes back of llm-compressor is checked tensor by tensor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.adapter.base import base_hash_of, weight_files
from engines.errors import BadRequest, Internal, Unavailable
from engines.profiles import PROFILES
from learners.export import quantize as module
from learners.export.quantize import Request, check_left_alone, quantize
from learners.export.recipe import SCALED_NORMS

PROFILE = PROFILES["qwen3_vl"]
LINEAR = "model.language_model.layers.0.self_attn.q_proj.weight"
TOWER = "model.visual.blocks.0.attn.qkv.weight"


def write_model(folder: Path, **changes: torch.Tensor) -> Path:
    folder.mkdir()
    tensors = {LINEAR: torch.ones(4, 4), TOWER: torch.ones(4, 4), "lm_head.weight": torch.ones(8, 4)}
    save_file(tensors | changes, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": list(PROFILE.architectures)}))
    return folder


def test_a_copy_with_only_the_linears_quantized_passes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    check_left_alone(model, write_model(tmp_path / "made", **{LINEAR: torch.ones(4, 4).half()}), PROFILE)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "did not quantize model.language_model"),
        ({LINEAR: torch.zeros(4, 4), TOWER: torch.zeros(4, 4)}, "changed model.visual"),
        ({LINEAR: torch.zeros(4, 4), "lm_head.weight": torch.zeros(8, 4)}, "changed lm_head"),
    ],
)
def test_a_copy_that_differs_elsewhere_is_a_defect(tmp_path: Path, changes: dict[str, torch.Tensor], why: str) -> None:
    with pytest.raises(Internal, match=why):
        check_left_alone(write_model(tmp_path / "model"), write_model(tmp_path / "made", **changes), PROFILE)


def test_only_a_scheme_that_scales_norms_may_change_them(tmp_path: Path) -> None:
    norm = "model.language_model.layers.0.input_layernorm.weight"
    model = write_model(tmp_path / "model", **{norm: torch.ones(4)})
    made = write_model(tmp_path / "made", **{LINEAR: torch.zeros(4, 4), norm: torch.zeros(4)})
    check_left_alone(model, made, PROFILE, scaled=SCALED_NORMS)
    with pytest.raises(Internal, match=f"changed {norm}"):
        check_left_alone(model, made, PROFILE)


def test_a_sharded_model_becomes_one_file_that_no_index_speaks_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out, scratch = write_sharded(tmp_path / "model"), tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    out.mkdir()

    def compress(_python: Path, document: dict[str, Any], _scratch: Path) -> None:
        """As llm-compressor saves it: in one file."""
        made = write_model(Path(document["out"]), **{LINEAR: torch.ones(4, 4).half()})
        (made / "config.json").write_text(json.dumps({"quantization_config": {"ignore": ["lm_head"]}}))
        (made / "quantized.json").write_text(json.dumps({"versions": {}, "device": "cpu"}))

    monkeypatch.setattr(module, "_run_child", compress)
    quantize(Path("python"), Request(model, {}, None, scales_inputs=False, num_threads=1), PROFILE, out, scratch)
    assert weight_files(out) == (out / "model.safetensors",)
    assert LINEAR in load_file(out / "model.safetensors")
    assert base_hash_of(out) == base_hash_of(model)


def write_sharded(folder: Path) -> Path:
    """`write_model`, in two files and an index."""
    write_model(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for shard in set(names.values()):
        save_file({name: tensors[name] for name in tensors if names[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


@pytest.mark.parametrize(
    ("python", "error", "why"),
    [("/nonexistent/python", BadRequest, "cannot be run"), (sys.executable, Unavailable, "llm-compressor failed")],
)
def test_a_child_that_cannot_work_leaves_nothing(tmp_path: Path, python: str, error: type[Exception], why: str) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    out.mkdir()
    request = Request(tmp_path / "no-model", {}, None, scales_inputs=False, num_threads=1)
    with pytest.raises(error, match=why):
        quantize(Path(python), request, PROFILE, out, scratch)
    assert list(out.iterdir()) == []
