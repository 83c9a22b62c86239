"""What may take another model's place in a running process: the same in everything but the weights."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_adapter import write_base

from engines.errors import BadRequest
from engines.same_place import check_place

CONFIG = {"architectures": ["Qwen3VLForConditionalGeneration"], "text_config": {"hidden_size": 8}, "dtype": "bfloat16"}
SCHEME = {
    "quant_method": "compressed-tensors",
    "ignore": ["lm_head", "visual"],
    "kv_cache_scheme": None,
    "version": "1",
}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two models that differ in their weights only."""
    served, other = write_base(tmp_path / "served", seed=1), write_base(tmp_path / "other", seed=2)
    for directory in (served, other):
        (directory / "tokenizer.json").write_text("{}")
        write_config(directory, {**CONFIG, "quantization_config": SCHEME})
    return served, other


def write_config(directory: Path, config: object) -> None:
    (directory / "config.json").write_text(json.dumps(config))


def test_other_weights_fit(pair: tuple[Path, Path]) -> None:
    check_place(*pair)


def test_who_wrote_it_and_in_which_order_says_nothing(pair: tuple[Path, Path]) -> None:
    scheme = {"ignore": ["visual", "lm_head"], "quant_method": "compressed-tensors", "version": "2"}
    write_config(pair[1], {**CONFIG, "transformers_version": "9", "dtype": "float32", "quantization_config": scheme})
    (pair[1] / "export.json").write_text("{}")
    check_place(*pair)


@pytest.mark.parametrize("scheme", [None, {**SCHEME, "quant_method": "fp8"}, {**SCHEME, "ignore": ["visual"]}])
def test_another_number_format_does_not(pair: tuple[Path, Path], scheme: object) -> None:
    write_config(pair[1], {**CONFIG, "quantization_config": scheme})
    with pytest.raises(BadRequest, match=r"config\.json of .* rolling swap"):
        check_place(*pair)


def test_layers_of_other_kinds_in_another_order_do_not(pair: tuple[Path, Path]) -> None:
    for directory, kinds in zip(pair, (["full", "sliding"], ["sliding", "full"]), strict=True):
        write_config(directory, {**CONFIG, "text_config": {"layer_types": kinds}})
    with pytest.raises(BadRequest, match=r"config\.json"):
        check_place(*pair)


def test_another_version_of_a_format_does_not(pair: tuple[Path, Path]) -> None:
    for directory, version in zip(pair, ("gemm", "gemv"), strict=True):
        write_config(directory, {**CONFIG, "quantization_config": {"quant_method": "awq", "version": version}})
    with pytest.raises(BadRequest, match=r"config\.json"):
        check_place(*pair)


def test_groups_that_name_the_same_modules_fit(pair: tuple[Path, Path]) -> None:
    for directory, targets in zip(pair, (["Linear", "Conv2d"], ["Conv2d", "Linear"]), strict=True):
        scheme = {**SCHEME, "config_groups": {"group_0": {"targets": targets}}}
        write_config(directory, {**CONFIG, "quantization_config": scheme})
    check_place(*pair)


def test_another_tokenizer_or_template_does_not(pair: tuple[Path, Path]) -> None:
    (pair[1] / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(BadRequest, match=r"chat_template\.jinja"):
        check_place(*pair)
    shutil.copy(pair[1] / "chat_template.jinja", pair[0])
    (pair[0] / "tokenizer.json").unlink()
    with pytest.raises(BadRequest, match=r"tokenizer\.json"):
        check_place(*pair)
