"""A merged model is what PEFT would merge, rounded once; everything else of the base stays as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from written_adapter import LANGUAGE, VISION, write_adapter

from engines.adapter import base_hash_of, read_base, verify
from engines.adapter.base import weight_files
from engines.adapter.mergeable import verify_mergeable
from engines.errors import AdapterRefused, BadRequest
from learners.merge import merge

TOY_BASE = Path(__file__).parents[4] / "learners" / "toy" / "weights" / "base"
WEIGHTS = "adapter_model.safetensors"

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small base in bfloat16, which also says whose copy it is."""
    folder = shutil.copytree(TOY_BASE, tmp_path_factory.mktemp("merge") / "base")
    (folder / "tandem_base.json").write_text(json.dumps({"base_hash": base_hash_of(folder)}))
    return folder


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    return dict(PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict())


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("saved") / "adapter")


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A plain LoRA, to be harmed."""
    return shutil.copytree(saved, tmp_path / "adapter")


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"target_modules": [*LANGUAGE, *VISION]}],
    ids=["lora", "rslora", "dora", "vision"],
)
def test_a_merged_weight_is_pefts_rounded_once_and_the_rest_is_untouched(
    base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **options)
    mergeable = verify_mergeable(adapter, base)
    out = tmp_path / "merged"
    out.mkdir()
    merge(base, mergeable, out)
    before, after = (load_file(path / "model.safetensors") for path in (base, out))
    expected = merged_by_peft(base, adapter)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{module}.weight" for module in mergeable.modules}
    for name in changed:
        assert after[name].dtype == torch.bfloat16
        assert torch.equal(after[name], expected[name].to(torch.bfloat16)), name


def test_a_merged_model_is_a_base_of_its_own(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    out.mkdir()
    merge(base, verify_mergeable(adapter, base), out)
    assert read_base(out).base_hash != read_base(base).base_hash
    texts = {path.name for path in base.iterdir()} - {"model.safetensors", "tandem_base.json"}
    assert {path.name for path in out.iterdir()} - {"model.safetensors"} == texts
    assert all((out / name).read_bytes() == (base / name).read_bytes() for name in texts)


def test_a_sharded_base_is_merged_into_shards_of_the_same_names(base: Path, adapter: Path, tmp_path: Path) -> None:
    sharded = shutil.copytree(base, tmp_path / "sharded")
    tensors = load_file(sharded / "model.safetensors")
    names = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(sorted(tensors))}
    for shard in set(names.values()):
        save_file({name: tensors[name] for name in tensors if names[name] == shard}, sharded / shard)
    (sharded / "model.safetensors").unlink()
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for model, out in ((base, whole), (sharded, parts)):
        out.mkdir()
        merge(model, verify_mergeable(adapter, model), out)
    merged = {name: tensor for path in weight_files(parts) for name, tensor in load_file(path).items()}
    expected = load_file(whole / "model.safetensors")
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_what_the_fast_lane_refuses_is_merged(base: Path, tmp_path: Path) -> None:
    dora = write_adapter(base, tmp_path / "dora", use_dora=True)
    vision = write_adapter(base, tmp_path / "vision", target_modules=[*LANGUAGE, *VISION])
    for adapter, why in ((dora, "DoRA"), (vision, "is not adapted in qwen3_vl")):
        with pytest.raises(AdapterRefused, match=why):
            verify(adapter, read_base(base), max_rank=16)
    assert verify_mergeable(dora, base).use_dora
    assert any(module.startswith("model.visual.") for module in verify_mergeable(vision, base).modules)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        ("nan", "NaN"),
        ("rank", "has shape"),
        ("half", "is incomplete"),
        ("foreign", "matches no linear"),
        ("magnitude", "none of lora_A"),
        ("pickle", "pickle"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(base: Path, adapter: Path, harm: str, why: str) -> None:
    tensors = load_file(adapter / WEIGHTS)
    first = min(name for name in tensors if "lora_A" in name)
    match harm:
        case "nan":
            tensors[first][0, 0] = float("nan")
        case "rank":
            tensors[first] = torch.zeros(5, tensors[first].shape[1])
        case "half":
            del tensors[first]
        case "foreign":
            tensors[first.replace("layers.0", "layers.9")] = tensors.pop(first)
        case "magnitude":
            tensors[first.replace("lora_A.weight", "lora_magnitude_vector")] = torch.ones(3)
        case "pickle":
            (adapter / "optimizer.pt").write_bytes(b"\x80")
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(AdapterRefused, match=why):
        verify_mergeable(adapter, base)


def test_an_adapter_that_changed_since_it_was_verified_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    mergeable = verify_mergeable(adapter, base)
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, adapter / WEIGHTS)
    with pytest.raises(AdapterRefused, match="changed since it was verified"):
        merge(base, mergeable, tmp_path)


def test_nothing_is_merged_into_a_quantized_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    mergeable = verify_mergeable(adapter, base)
    quantized = shutil.copytree(base, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text()) | {"quantization_config": {}}
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadRequest, match="is quantized"):
        merge(quantized, mergeable, tmp_path / "out")
