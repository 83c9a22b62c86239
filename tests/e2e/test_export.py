"""A trained adapter as a model of its own: merged, quantized by llm-compressor, served by vLLM.

`TANDEM_TEST_QUANTIZER` names an interpreter that has llm-compressor; without it one is made in data/envs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from evidence import Supports
from stack import ROOT, run_learner, train_sft
from support_rows import Aspect
from toys import TOYS, Toy

from engines.adapter import base_hash_of, read_base, verify
from engines.config import EngineConfig
from engines.errors import AdapterRefused
from engines.schemes import MachineKind, here
from learners.export.report import ExportReport, read_report

NUM_QUESTIONS = 500
MAX_LOSS = 0.02
"""Of accuracy, by rounding the weights."""

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Exported:
    adapter: Path
    base: Path
    directory: Path
    report: ExportReport
    narration: str


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out questions."""
    held_out = tmp_path_factory.mktemp("rows") / "held-out.jsonl"
    run_learner("toy", "rows", "--set", "held-out", "--num", str(NUM_QUESTIONS), "--out", str(held_out))
    return held_out


@pytest.fixture(scope="module", params=TOYS)
def toy(request: pytest.FixtureRequest) -> Toy:
    return TOYS[request.param]


@pytest.fixture(scope="module")
def adapter(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sft(tmp_path_factory.mktemp("trained"), toy.base)


@pytest.fixture(scope="module", params=["fp8", "w4a16-rtn"])
def exported(
    request: pytest.FixtureRequest, toy: Toy, adapter: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    out = tmp_path_factory.mktemp("exports") / request.param
    command = [sys.executable, "-m", "gateway.cli", "versions", "export", str(adapter), "--base", str(toy.base)]
    command += ["--scheme", request.param, "--out", str(out), "--data", str(rows)]
    command += ["--set", f"python={os.environ.get('TANDEM_TEST_QUANTIZER', '')}"]
    command += ["--set", f"environments={ROOT / 'data' / 'envs'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return Exported(adapter, toy.base, out, read_report(out), done.stderr)


def test_rounding_costs_little_accuracy(exported: Exported) -> None:
    report = exported.report
    assert report.quality is not None
    assert report.quality.num_rows == NUM_QUESTIONS
    assert report.task_difference is not None
    assert report.task_difference >= -MAX_LOSS
    assert report.unquantized_quality is not None
    assert report.quality.perplexity < 1.1 * report.unquantized_quality.perplexity


def test_an_engine_serves_it_as_accurately_or_the_report_says_why_none_did(
    exported: Exported, supports: Supports
) -> None:
    tested, report = exported.report.load_test, exported.report
    if report.method.scheme.is_grouped and here() is MachineKind.CPU_AVX2:
        assert tested.status == "not tested"
        assert "AVX-512" in str(tested.reason)
        assert f"not load-tested here: {tested.reason}" in exported.narration
        assert report.probe == ()
        return
    supports(EngineConfig(model=str(exported.directory)), Aspect.EXPORT)
    assert tested.status == "passed"
    assert tested.num_questions == NUM_QUESTIONS
    assert report.unquantized_quality is not None
    assert tested.exact_match is not None
    assert tested.exact_match >= report.unquantized_quality.exact_match - MAX_LOSS
    assert all(len(answer.logprobs) == answer.num_tokens for answer in report.probe)
    assert len(report.probe) > 0


def test_adapters_of_the_old_base_never_fit_it(exported: Exported) -> None:
    model = read_base(exported.directory / exported.report.unquantized)
    assert model.base_hash == exported.report.base_hash == base_hash_of(exported.directory)
    assert model.base_hash != base_hash_of(exported.base) == exported.report.source.base_hash
    with pytest.raises(AdapterRefused, match="trained on another base"):
        verify(exported.adapter, model, max_rank=16)


def test_texts_are_those_of_the_merged_model(exported: Exported) -> None:
    unquantized = exported.directory / exported.report.unquantized
    for name in ("tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (exported.directory / name).read_bytes() == (exported.base / name).read_bytes()
    quantized, plain = (json.loads((path / "config.json").read_text()) for path in (exported.directory, unquantized))
    del quantized["quantization_config"]
    assert quantized == plain
