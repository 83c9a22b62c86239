"""What comes back of llm-compressor is checked tensor by tensor."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engines.errors import BadRequest, Internal, Unavailable
from engines.profiles import PROFILES
from learners.export.quantize import Request, check_left_alone, quantize

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


@pytest.mark.parametrize(
    ("python", "error", "why"),
    [("/nonexistent/python", BadRequest, "cannot be run"), (sys.executable, Unavailable, "llm-compressor failed")],
)
def test_a_child_that_cannot_work_leaves_nothing(tmp_path: Path, python: str, error: type[Exception], why: str) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    out.mkdir()
    request = Request(tmp_path / "no-model", {}, None, needs_accelerator=False, num_threads=1)
    with pytest.raises(error, match=why):
        quantize(Path(python), request, PROFILE, out, scratch)
    assert list(out.iterdir()) == []
