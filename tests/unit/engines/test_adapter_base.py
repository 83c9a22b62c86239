from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_adapter import HIDDEN, linear_shapes, safetensors_bytes, write_adapter, write_base

from engines.adapter import BaseModel, base_hash_of, read_base, verify
from engines.adapter.packed import Packing, linear_shape, packing_of
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


INT4, INT8 = {"weights": {"num_bits": 4}}, {"weights": {"num_bits": 8}}


@pytest.mark.parametrize(
    ("quantization", "leaf", "stored"),
    [({"quant_method": "compressed-tensors", "config_groups": {"a": INT4}}, "weight_packed", (16, 4)),
     ({"quant_method": "compressed-tensors", "config_groups": {"a": INT8, "b": INT8}}, "weight_packed", (16, 8)),
     ({"quant_method": "gptq", "bits": 4}, "qweight", (4, 16)),
     ({"quant_method": "gptq", "bits": 8}, "qweight", (8, 16)),
     ({"quant_method": "awq", "bits": 4}, "qweight", (32, 2)),
     ({"quant_method": "awq", "w_bit": 4}, "qweight", (32, 2))],
)  # fmt: skip
def test_a_packed_weight_has_the_shape_of_its_linear(
    tmp_path: Path, quantization: dict[str, Any], leaf: str, stored: tuple[int, int]
) -> None:
    packing = packing_in(tmp_path, quantization)
    assert linear_shape(packing, leaf, stored) == (16, 32)
    assert linear_shape(Packing(), leaf, stored) is None
    assert linear_shape(packing, "weight_scale", stored) is None


@pytest.mark.parametrize(
    ("quantization", "leaf"),
    [({"quant_method": "compressed-tensors", "config_groups": {"a": INT4, "b": INT8}}, "weight_packed"),
     ({"quant_method": "compressed-tensors"}, "weight_packed"),
     ({"quant_method": "compressed-tensors", "config_groups": {"a": 3}}, "weight_packed"),
     ({"quant_method": "gptq"}, "qweight"), ({"quant_method": "awq", "bits": "four"}, "qweight"),
     ({"quant_method": "gptq", "bits": 0}, "qweight"), ({"quant_method": "gptq", "bits": 3}, "qweight")],
)  # fmt: skip
def test_a_weight_of_unknown_bits_has_no_shape(tmp_path: Path, quantization: dict[str, Any], leaf: str) -> None:
    assert linear_shape(packing_in(tmp_path, quantization), leaf, (16, 4)) is None


def packing_in(directory: Path, quantization: dict[str, Any]) -> Packing:
    (directory / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return packing_of(directory)
