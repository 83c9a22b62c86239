"""Whole exports with the real llm-compressor, without an engine: what is written, and what is refused.

`TANDEM_TEST_QUANTIZER` names an interpreter that has llm-compressor; without it one is made in data/envs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import TOYS
from written_adapter import LANGUAGE, VISION, write_adapter

from engines.adapter import base_hash_of, read_base, verify
from engines.errors import AdapterRefused, BadRequest, Conflict
from engines.profiles import PROFILES
from learners.config import Scheme, load_export
from learners.export.recipe import SCALED_NORMS
from learners.export.report import ExportReport, read_report
from learners.export.run import run_export
from learners.toy.easy_vqa import Question, corrections, held_out

ROOT = Path(__file__).parents[4]
BASE = TOYS["qwen3_vl"].base
NUM_QUESTIONS = 40

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]


def write_rows(path: Path, questions: list[Question]) -> Path:
    rows = ({"image": str(row.image_path), "text": row.text, "answer": row.answer} for row in questions)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "held-out.jsonl", list(held_out(500))[:NUM_QUESTIONS])


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "corrections.jsonl", list(corrections(0, 48)))


def export(adapter: Path, out: Path, scheme: Scheme, *settings: str, base: Path = BASE) -> ExportReport:
    python = os.environ.get("TANDEM_TEST_QUANTIZER", "")
    fixed = (f"python={python}", f"environments={ROOT / 'data' / 'envs'}", "load_test=false")
    options = {"model": str(base), "adapter": str(adapter), "out": str(out), "scheme": scheme.value}
    said: list[str] = []
    report = run_export(load_export(None, (*fixed, *settings), options), said.append)
    assert said
    return report


@pytest.mark.parametrize("family", TOYS)
@pytest.mark.parametrize("scheme", [Scheme.FP8, Scheme.W4A16_RTN, Scheme.W4A16_GPTQ, Scheme.W4A16_AWQ])
def test_every_scheme_leaves_a_model_that_answers_much_as_the_unquantized_one(
    tmp_path: Path, data: Path, calibration: Path, scheme: Scheme, family: str
) -> None:
    out, base = tmp_path / "out", TOYS[family].base
    adapter = write_adapter(base, tmp_path / "adapter", use_dora=True, target_modules=[*LANGUAGE, *VISION])
    settings = (f"data={data}", f"calibration={calibration}", "num_calibration=32")
    report = export(adapter, out, scheme, *settings, base=base)
    assert read_report(out) == report
    assert report.family == family
    assert report.source.is_dora
    assert report.load_test.reason == "the settings say load_test = false"
    assert report.method.num_calibration_rows == (32 if scheme.is_calibrated else 0)
    before, after = (load_file(path / "model.safetensors") for path in (out / report.unquantized, out))
    same_dtype = (name for name in before if name in after and before[name].dtype == after[name].dtype)
    kept = {name for name in same_dtype if torch.equal(before[name], after[name])}
    changed = {PROFILES[family].model_module(name.removesuffix(".weight")) for name in set(before) - kept}
    norms = {name for name in changed if name.endswith(SCALED_NORMS)}
    assert changed - norms == set(read_base(out / report.unquantized).modules)
    assert bool(norms) == scheme.scales_inputs
    assert (base_hash_of(out) == base_hash_of(out / report.unquantized)) == (not scheme.scales_inputs)
    assert report.bytes_after < 0.8 * report.bytes_before
    assert report.quality is not None
    assert report.unquantized_quality is not None
    assert report.quality.perplexity != report.unquantized_quality.perplexity
    assert report.quality.perplexity == pytest.approx(report.unquantized_quality.perplexity, rel=0.25)


def test_an_export_is_a_base_that_adapters_of_the_old_one_do_not_fit(tmp_path: Path) -> None:
    adapter = write_adapter(BASE, tmp_path / "adapter")
    out = tmp_path / "out"
    report = export(adapter, out, Scheme.FP8)
    merged = read_base(out / report.unquantized)
    assert report.base_hash == merged.base_hash == base_hash_of(out) != base_hash_of(BASE)
    assert report.quality is None
    new = write_adapter(out / report.unquantized, tmp_path / "new")
    assert verify(new, merged, max_rank=16).base_hash == base_hash_of(out)


def test_without_a_scheme_the_merged_model_is_all(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    report = export(write_adapter(BASE, tmp_path / "adapter"), out, Scheme.NONE, f"data={data}")
    assert (report.unquantized, report.bytes_after) == (".", report.bytes_before)
    assert report.task_difference == 0
    assert report.method.versions == {}
    with pytest.raises(Conflict, match="is there already"):
        export(tmp_path / "adapter", out, Scheme.NONE)


def test_what_is_refused_leaves_nothing(tmp_path: Path, calibration: Path) -> None:
    adapter = write_adapter(BASE, tmp_path / "adapter")
    with pytest.raises(BadRequest, match="group_size: 96 does not divide"):
        export(adapter, tmp_path / "out", Scheme.W4A16_RTN, "group_size=96")
    (adapter / "optimizer.pt").write_bytes(b"\x80")
    with pytest.raises(AdapterRefused, match="pickle"):
        export(adapter, tmp_path / "out", Scheme.FP8)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
