"""One export from its settings to its directory: merge, quantize, load, judge, report."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from engines.adapter.base import base_hash_of, read_base
from engines.adapter.mergeable import MergeableAdapter, verify_mergeable
from engines.export_probe import ExportRecord
from engines.types import ProbePrompt, ProbeScore
from learners.config.export import ExportConfig
from learners.data.examples import Example
from learners.data.readers import DataSet, check_rejected, read_data
from learners.export.load_test import NotServed, Served
from learners.export.report import ExportReport, LoadTested, Source, num_weight_bytes, warnings_of, write_report
from learners.export.steps import UNQUANTIZED, Clock, Rows, Say, Steps
from learners.merge import check_unquantized
from learners.whole import writing_directory

MAX_BAD_FRACTION = 0.01
ENGINE = "vllm"


def run_export(config: ExportConfig, say: Say) -> ExportReport:
    """Writes `config.out`, whole or not at all, and answers what its `export.json` says.

    Raises `AdapterRefused`, `BadRequest` (a setting), `Conflict` (`out` is there), `Refused` (bad rows), `EngineDown`
    (the load test failed) or `Unavailable` (llm-compressor).
    """
    base = Path(config.model)
    check_unquantized(base)
    adapter = verify_mergeable(Path(config.adapter), base) if config.adapter else None
    rows = Rows(_read_rows(config.data), _read_rows(config.calibration))
    with writing_directory(Path(config.out), "out") as out, _scratch_beside(out) as scratch:
        steps = Steps(config, rows, Clock(say), out, Path(scratch))
        unquantized = steps.merge(base, adapter)
        model = read_base(unquantized)
        method = steps.quantize(model)
        probes, served = steps.load_test(model)
        tested = LoadTested.of(served, ENGINE)
        before, after = steps.judge(unquantized)
        report = ExportReport(
            family=model.profile.name,
            base_hash=base_hash_of(out),
            unquantized=UNQUANTIZED if unquantized != out else ".",
            source=_source(config, adapter),
            method=method,
            bytes_before=num_weight_bytes(unquantized),
            bytes_after=num_weight_bytes(out),
            data=config.data,
            data_hash=rows.data.data_hash if rows.data else None,
            unquantized_quality=before,
            quality=after,
            load_test=tested,
            warnings=warnings_of(tested, after),
            seconds=steps.clock.seconds,
            probe=_records(probes, served),
        )
        write_report(report, out)
    return report


def _scratch_beside(out: Path) -> tempfile.TemporaryDirectory[str]:
    """On the same file system, where weights are renamed from one to the other."""
    return tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}-")


def _read_rows(path: str | None) -> DataSet[Example] | None:
    """Raises `Refused` if too many are bad."""
    if path is None:
        return None
    data = read_data(Path(path))
    check_rejected(data.num_rows, data.rejected, MAX_BAD_FRACTION)
    return data


def _source(config: ExportConfig, adapter: MergeableAdapter | None) -> Source:
    if adapter is None:
        return Source(base=config.model, base_hash=base_hash_of(Path(config.model)))
    return Source(
        base=config.model,
        base_hash=adapter.base_hash,
        adapter=config.adapter,
        adapter_sha256=adapter.weights_sha256,
        version=config.version,
        parent=adapter.manifest.parent if adapter.manifest else None,
        num_modules=len(adapter.modules),
        is_dora=adapter.use_dora,
    )


def _records(probes: Sequence[ProbePrompt], served: Served | NotServed) -> tuple[ExportRecord, ...]:
    if isinstance(served, NotServed):
        return ()
    return tuple(_record(probe, score) for probe, score in zip(probes, served.scores, strict=True))


def _record(probe: ProbePrompt, score: ProbeScore) -> ExportRecord:
    return ExportRecord(
        text=probe.text,
        answer=probe.answer,
        image=probe.image,
        num_tokens=probe.num_tokens,
        token_ids=score.token_ids,
        logprobs=score.logprobs,
    )
