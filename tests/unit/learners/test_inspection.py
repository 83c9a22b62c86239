"""What looking at a model finds is what the table of families says, and what is broken is said step by step."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_llava import write_tiny_llava
from toys import TOYS

from engines.inspection import Inspection, Part, parse_inspection
from engines.profiles import PROFILES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def look(model: Path, out: Path) -> Inspection:
    command = [sys.executable, "-m", "learners", "inspect", str(model), "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    found = parse_inspection(done.stdout)
    assert done.returncode == (1 if found.faults else 0), done.stderr
    return found


@pytest.mark.parametrize("family", TOYS)
def test_a_known_family_is_found_as_the_table_has_it(family: str, tmp_path: Path) -> None:
    found, known = look(TOYS[family].base, tmp_path), PROFILES[family]
    language = found.linears(Part.LANGUAGE)
    assert language is not None
    assert language.leaves == known.target_modules
    assert found.peft_targets == known.peft_targets
    assert found.layers.startswith(known.language_prefixes)
    assert known.model_module(found.stored_layers) == found.layers
    assert set(found.vision_tokens) <= set(known.vision_tokens)
    assert found.faults == ()


def test_the_random_adapter_changes_both_answers_measurably(tmp_path: Path) -> None:
    records = look(TOYS["qwen3_vl"].base, tmp_path).records
    assert [record.image is None for record in records] == [True, False]
    for record in records:
        changes = [abs(a - b) for a, b in zip(record.adapter_logprobs, record.base_logprobs, strict=True)]
        assert sum(changes) / len(changes) > 0.02


def test_linears_that_the_vision_tower_calls_alike_cannot_be_trained_by_name(tmp_path: Path) -> None:
    found = look(write_tiny_llava(tmp_path / "llava", tokenizer_of=TOYS["qwen3_vl"].base), tmp_path)
    assert found.peft_targets == ()
    assert found.stored_layers == "language_model.model.layers."
    assert found.faults == ()


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.numpy import save_file
    from safetensors.torch import load_file

    model = tmp_path / "model"
    shutil.copytree(TOYS["qwen3_vl"].base, model)
    weights = load_file(model / "model.safetensors")
    del weights["lm_head.weight"]
    save_file({name: tensor.float().numpy() for name, tensor in weights.items()}, model / "model.safetensors")
    assert "weights are missing" in look(model, tmp_path).fault("load")


def test_a_processor_without_a_template_is_a_fault_of_its_own(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TOYS["qwen3_vl"].base, model)
    (model / "chat_template.jinja").unlink()
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "chat_template"}))
    found = look(model, tmp_path)
    assert "no chat template" in found.fault("template")
    assert found.architecture == "Qwen3VLForConditionalGeneration"
