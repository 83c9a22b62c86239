"""The committed base, its toy.fp8 copy, and the report beside them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dequantized import unpack
from PIL import Image
from safetensors.torch import load_file
from toys import TOYS, Toy
from typer.testing import CliRunner

from engines.adapter.base import base_hash_of, read_base
from engines.errors import BadRequest
from engines.profiles import PROFILES
from learners.toy.build import build
from learners.toy.cli import app
from learners.toy.easy_vqa import Kind, dev, held_out
from learners.toy.evaluate import answered_right, load_model
from learners.toy.families import FAMILIES
from learners.toy.forward import AnswerForward
from learners.toy.model import build_model
from learners.toy.quantize import quantize
from learners.toy.schemes import FP8_MAX, GROUP_SIZE, to_fp8
from learners.toy.tensors import collect, encode_prompts, load_pictures
from learners.toy.tokenizer import TURN_END


@pytest.fixture(scope="module", params=TOYS)
def toy(request: pytest.FixtureRequest) -> Toy:
    return TOYS[request.param]


@pytest.fixture(scope="module")
def loaded(toy: Toy) -> Any:
    return load_model(toy.base)


def report_of(toy: Toy) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(toy.report.read_text("utf-8"))
    return report


@pytest.fixture(scope="module")
def w4a16(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("copy") / "w4a16"
    said = CliRunner().invoke(app, ["quantize", "--scheme", "w4a16", "--model", str(toy.base), "--out", str(out)])
    assert said.exit_code == 0, said.output
    return out


def conversation(row: Any) -> list[dict[str, Any]]:
    picture = {"type": "image", "image": Image.open(row.image_path)}
    return [{"role": "user", "content": [picture, {"type": "text", "text": row.text}]}]


def test_the_copy_names_the_base_that_is_beside_it(toy: Toy) -> None:
    assert base_hash_of(toy.fp8) == base_hash_of(toy.base) == report_of(toy)["base_hash"]
    assert read_base(toy.fp8).modules == read_base(toy.base).modules


def test_the_copy_is_what_the_command_makes_of_the_base(toy: Toy, tmp_path: Path) -> None:
    quantize(toy.base, tmp_path)
    made, committed = load_file(tmp_path / "model.safetensors"), load_file(toy.fp8 / "model.safetensors")
    assert made.keys() == committed.keys()
    assert all(torch.equal(made[name].float(), committed[name].float()) for name in made)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((toy.fp8 / "config.json").read_text())


def test_the_copy_is_the_base_to_within_float8_and_only_its_language_linears_differ(toy: Toy) -> None:
    base, copy = load_file(toy.base / "model.safetensors"), load_file(toy.fp8 / "model.safetensors")
    quantized = read_base(toy.base).modules.keys()
    for name, weight in base.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or PROFILES[toy.family].model_module(module) not in quantized:
            assert torch.equal(copy[name], weight), name
            continue
        scale = copy[f"{name.removesuffix('weight')}weight_scale"]
        assert copy[name].dtype is torch.float8_e4m3fn
        assert scale.shape == (weight.shape[0], 1)
        # float8 e4m3: 3 bits of mantissa, so half a step is 1/16 of the number, or half the smallest subnormal.
        bound = torch.maximum(weight.float().abs() / 16, scale * 2.0**-10)
        assert ((copy[name].float() * scale - weight.float()).abs() <= bound * 1.001).all(), name


def test_the_largest_weight_of_a_channel_becomes_the_largest_float8() -> None:
    values, scale = to_fp8(torch.tensor([[0.5, -2.0], [0.0, 0.0]]))
    assert values.float()[0].tolist() == [112.0, -FP8_MAX]
    assert values.float()[1].tolist() == [0.0, 0.0]
    assert torch.isfinite(scale).all()


def test_a_w4a16_copy_is_the_base_to_within_half_a_step_and_only_its_language_linears_differ(
    toy: Toy, w4a16: Path
) -> None:
    base, stored, copy = (
        load_file(toy.base / "model.safetensors"),
        load_file(w4a16 / "model.safetensors"),
        unpack(w4a16),
    )
    quantized = read_base(toy.base).modules.keys()
    assert copy.keys() == base.keys()
    for name, weight in base.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or PROFILES[toy.family].model_module(module) not in quantized:
            assert torch.equal(copy[name], weight), name
            continue
        packed = stored[f"{name}_packed"]
        assert (packed.dtype, packed.shape) == (torch.int32, (weight.shape[0], weight.shape[1] // 8))
        step = stored[f"{name}_scale"].float().repeat_interleave(GROUP_SIZE, dim=1)
        # A step is rounded to bfloat16, so a group's largest weight may lie 7.5 / 256 of one further out.
        assert ((copy[name] - weight.float()).abs() <= step * 0.53).all(), name
        assert len((copy[name] / step).round().unique()) > 8, name


def test_a_w4a16_copy_says_what_an_engine_expects_and_whose_copy_it_is(toy: Toy, w4a16: Path) -> None:
    said = json.loads((w4a16 / "config.json").read_text("utf-8"))["quantization_config"]
    (group,) = said["config_groups"].values()
    assert (said["quant_method"], said["format"]) == ("compressed-tensors", "pack-quantized")
    assert group["weights"] == {
        **{"num_bits": 4, "type": "int", "symmetric": True, "dynamic": False},
        **{"strategy": "group", "group_size": GROUP_SIZE},
    }
    assert group["input_activations"] is None
    assert "lm_head" in said["ignore"]
    assert any(toy.vision_tower in name for name in said["ignore"])
    assert not any("language_model" in name for name in said["ignore"])
    assert base_hash_of(w4a16) == report_of(toy)["base_hash"]
    assert read_base(w4a16).modules == read_base(toy.base).modules


def test_quantizing_a_copy_again_is_refused_when_it_has_no_such_linears(toy: Toy, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text((toy.base / "config.json").read_text())
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(BadRequest, match="no language linears"):
        quantize(tmp_path, tmp_path / "out")


def test_all_pictures_at_once_give_the_logits_of_transformers_own_forward(toy: Toy, loaded: Any) -> None:
    _, processor = loaded
    model = load_model(toy.base)[0].eval()
    rows = dev()[:6]
    expected = []
    with torch.inference_mode():
        for row in rows:
            whole = [*conversation(row), {"role": "assistant", "content": row.answer}]
            inputs = processor.apply_chat_template(whole, tokenize=True, return_dict=True, return_tensors="pt")
            num_answer = len(processor.tokenizer(row.answer + TURN_END)["input_ids"])
            expected.append(model(**inputs).logits[0, -num_answer - 1 : -1])
        pictures = load_pictures([row.image_path for row in rows], FAMILIES[toy.family], processor, model.device)
        prompts = encode_prompts([(row.text, row.answer) for row in rows], model, processor, model.device)
        images = torch.tensor([pictures.place[row.image_path] for row in rows])
        texts = torch.tensor([prompts.place[row.text, row.answer] for row in rows])
        logits, labels = AnswerForward(model).answer_logits(collect(pictures, prompts, images, texts))
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-4, rtol=1e-4)
    assert labels.shape == logits.shape[:1]


def test_a_teacher_forced_hit_is_a_greedy_exact_match(toy: Toy, loaded: Any) -> None:
    model, processor = loaded
    rows = dev()[:24]
    right = answered_right(model, processor, rows)
    assert 0 < sum(right) < len(rows)
    generating = load_model(toy.base)[0].eval()
    for row, expected in zip(rows, right, strict=True):
        inputs = processor.apply_chat_template(
            conversation(row), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        made = generating.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert (processor.decode(made, skip_special_tokens=True) == row.answer) is expected


def test_the_committed_weights_score_what_the_report_says(toy: Toy, loaded: Any) -> None:
    model, processor = loaded
    rows = held_out()
    right = answered_right(model, processor, rows)
    expected = report_of(toy)["held_out"]
    assert sum(right) / len(rows) == pytest.approx(expected["overall"], abs=0.005)
    for kind in Kind:
        of_kind = [ok for ok, row in zip(right, rows, strict=True) if row.kind is kind]
        assert sum(of_kind) / len(of_kind) == pytest.approx(expected["by_kind"][kind.value], abs=0.025)


def test_a_build_never_overwrites_a_base(toy: Toy) -> None:
    with pytest.raises(BadRequest, match="is there already"):
        build(toy.root, FAMILIES[toy.family], "cpu", 0, "", lambda step, loss: None)


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(BadRequest, match="/nowhere is not a directory"):
        load_model(Path("/nowhere"))


def test_random_weights_depend_on_the_seed_alone(toy: Toy, loaded: Any) -> None:
    tokenizer = loaded[1].tokenizer
    one, same, other = (build_model(FAMILIES[toy.family], tokenizer, seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_rows_file_holds_what_the_learner_and_the_demo_read(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["rows", "--set", "corrections", "--num", "40", "--seed", "2", "--out", str(out)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(rows) == 40
    assert all(set(row) == {"image", "text", "answer", "kind", "id"} for row in rows)
    assert all(Path(row["image"]).is_absolute() and Path(row["image"]).is_file() for row in rows)
    assert len({row["id"] for row in rows}) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
