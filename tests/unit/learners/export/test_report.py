"""What a report says of the load test."""

from __future__ import annotations

import pytest

from learners.config import Scheme
from learners.export.load_test import Served
from learners.export.report import ExportReport, Judged, LoadTested, Method, Source, warnings_of
from learners.export.table import print_table

JUDGED = Judged(num_rows=500, num_tokens=1500, perplexity=1.1, exact_match=0.9)


def report(served: float | None, judged: Judged | None = JUDGED) -> ExportReport:
    tested = LoadTested.of(Served(0 if served is None else 64, served, ()), "vllm")
    return ExportReport(
        family="qwen3_vl",
        base_hash="sha256:0",
        unquantized="unquantized",
        source=Source(base="/base", base_hash="sha256:1"),
        method=Method(scheme=Scheme.FP8),
        bytes_before=2,
        bytes_after=1,
        data=None,
        data_hash=None,
        unquantized_quality=judged,
        quality=judged,
        load_test=tested,
        warnings=warnings_of(tested, judged),
        seconds={},
    )


def test_an_engine_that_answers_worse_than_was_judged_is_said_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    made = report(0.87)
    assert "0.870 of 64" in made.warnings[0]
    print_table(made)
    said = capsys.readouterr().out
    assert f"WARNING: {made.warnings[0]}" in said


@pytest.mark.parametrize("served", [0.89, 0.95])
def test_within_the_margin_there_is_no_warning(served: float, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(report(served))
    said = capsys.readouterr().out
    assert f"passed: {served:.3f} of 64" in said
    assert "WARNING" not in said


def test_an_engine_that_was_asked_nothing_has_passed_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(report(None, judged=None))
    said = capsys.readouterr().out
    assert "started; nothing asked" in said
    assert "passed" not in said
