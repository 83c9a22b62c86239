"""`tandem doctor MODEL` on real vLLM: the small model, and one of a family that Tandem does not know."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stack import ROOT, WEIGHTS
from tiny_llava import write_tiny_llava

from engines.profiles import FamilyProfile

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(500)]

ANSWERS = ("adapter verifies", "serves", "text answer", "image answer", "parity", "adapter loads", "adapter's effect")
READING = ("scheme", "transformers", "language linears", "vision linears", "chat template")


def diagnose(model: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """The exit code, the verdicts by subject, and the whole document."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "doctor", str(model), "--json"],
        capture_output=True, text=True, timeout=450, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    return done.returncode, {verdict["subject"]: verdict for verdict in document["verdicts"]}, document


def test_all_works_with_a_model_of_a_known_family() -> None:
    code, verdicts, document = diagnose(WEIGHTS / "base")
    assert {verdict["outcome"] for verdict in verdicts.values()} == {"works"}, verdicts
    assert verdicts["family"]["found"] == "qwen3_vl (Qwen3VLForConditionalGeneration)"
    assert document["profile_row"] == ""
    assert code == 0


def test_a_model_of_an_unknown_family_is_served_with_an_adapter_and_its_row_is_printed(tmp_path: Path) -> None:
    code, verdicts, document = diagnose(write_tiny_llava(tmp_path / "llava", tokenizer_of=WEIGHTS / "base"))
    subjects = (*READING, *ANSWERS)
    assert [(name, verdicts[name]["found"]) for name in subjects if verdicts[name]["outcome"] != "works"] == []
    assert verdicts["family"]["outcome"] == "unknown"
    # CLIP's linears are called as Llama's are, up to the number of the layer.
    assert verdicts["training"]["outcome"] == "fails"
    row = eval(document["profile_row"], {"FamilyProfile": FamilyProfile})  # noqa: S307  our own text
    assert row.architectures == ("LlavaForConditionalGeneration",)
    assert row.language_prefixes == ("model.language_model.",)
    assert row.engine_module("model.language_model.layers.0.self_attn.q_proj") == row.engine_module(
        "language_model.model.layers.0.self_attn.qkv_proj"
    )
    assert code == 3
