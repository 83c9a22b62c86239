from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_adapter import HIDDEN, linear_shapes, safetensors_bytes, write_adapter, write_base

from engines.adapter import BaseModel, base_hash_of, read_base, verify
from engines.adapter.packed import linear_shape
from engines.errors import BadRequest


def write_shards(directory: Path) -> Path:
    write_base(directory)
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for number, (module, shape) in enumerate(linear_shapes().items()):
        name = f"model-{number:05}.safetensors"
        tensors = {f"{module}.weight": ("F32", np.full(shape, number, "<f4"))}
        (directory / name).write_bytes(safetensors_bytes(tensors))
        weight_map[f"{module}.weight"] = name
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def test_modules_are_the_language_linears_only(base: BaseModel) -> None:
    assert dict(base.modules) == linear_shapes()
    assert base.profile.name == "qwen3_vl"


def test_hash_is_that_of_the_weights_file(tmp_path: Path) -> None:
    model = write_base(tmp_path / "model")
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert base_hash_of(model) == f"sha256:{digest}"


def test_hash_follows_the_weights(tmp_path: Path) -> None:
    first = base_hash_of(write_base(tmp_path / "a", seed=0))
    assert base_hash_of(write_base(tmp_path / "b", seed=0)) == first
    assert base_hash_of(write_base(tmp_path / "c", seed=1)) != first


def test_sharded_base_is_read_through_its_index(tmp_path: Path) -> None:
    model = write_shards(tmp_path / "model")
    assert dict(read_base(model).modules) == linear_shapes()
    shards = sorted(model.glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in shards)).hexdigest()
    assert base_hash_of(model) == f"sha256:{digest}"


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    model = write_base(tmp_path / "model")
    (model / "model.safetensors").rename(tmp_path / "blob")
    (model / "model.safetensors").symlink_to(tmp_path / "blob")
    assert dict(read_base(model).modules) == linear_shapes()


def test_adapter_of_the_original_fits_its_quantized_copy(tmp_path: Path, base: BaseModel, adapter_dir: Path) -> None:
    copy = write_base(tmp_path / "copy")
    tensors = {}
    for module, shape in linear_shapes().items():
        tensors[f"{module}.weight"] = ("F8_E4M3", np.zeros(shape, "u1"))
        tensors[f"{module}.weight_scale"] = ("BF16", np.zeros((shape[0], 1), "<u2"))
    (copy / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    (copy / "tandem_base.json").write_text(json.dumps({"base_hash": base.base_hash}))
    quantized = read_base(copy)
    assert quantized.base_hash == base.base_hash
    assert dict(quantized.modules) == linear_shapes()
    assert verify(write_adapter(adapter_dir), quantized, 16).modules


def test_copy_file_without_a_hash_is_refused(tmp_path: Path) -> None:
    model = write_base(tmp_path / "model")
    for text in ("{}", '{"base_hash": "md5:0"}', "nonsense"):
        (model / "tandem_base.json").write_text(text)
        with pytest.raises(BadRequest, match=r"tandem_base\.json"):
            read_base(model)


def test_index_that_leaves_the_directory_is_refused(tmp_path: Path) -> None:
    model = write_shards(tmp_path / "model")
    index = model / "model.safetensors.index.json"
    for name in ("../other.safetensors", "/etc/passwd", 3, ".hidden.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(BadRequest, match="no safetensors file beside it"):
            read_base(model)


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    model = write_base(tmp_path / "model")
    (model / "model.safetensors").unlink()
    with pytest.raises(BadRequest, match=r"model\.safetensors is missing"):
        read_base(model)


def test_checkpoint_with_other_names_is_refused(tmp_path: Path) -> None:
    model = write_base(tmp_path / "model")
    tensors = {"layers.0.q.weight": ("F32", np.zeros((HIDDEN, HIDDEN), "<f4"))}
    (model / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    with pytest.raises(BadRequest, match="it is not a qwen3_vl checkpoint"):
        read_base(model)


@pytest.mark.parametrize(
    ("method", "leaf", "stored"),
    [("compressed-tensors", "weight_packed", (16, 4)), ("gptq", "qweight", (4, 16)), ("awq", "qweight", (32, 2))],
)
def test_a_packed_weight_has_the_shape_of_its_linear(method: str, leaf: str, stored: tuple[int, int]) -> None:
    assert linear_shape(method, leaf, stored) == (16, 32)
    assert linear_shape("", leaf, stored) is None
    assert linear_shape(method, "weight_scale", stored) is None
