"""`export.json`: what an export is, what it was made of and by, and how it fared. Read by a release."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engines.adapter.base import weight_files
from engines.adapter.files import write_atomic
from engines.export_probe import EXPORT_FILE, ExportRecord
from learners.config.export import Scheme
from learners.export.judge import Quality
from learners.export.load_test import NotServed, Served

MAX_SHORTFALL = 0.02
"""In the share of right answers: how far the engine of the load test may stay below what was judged without a warning.
Over fewer questions than were judged, chance alone may make as much."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Source(_Part):
    """The unquantized model that was exported."""

    base: str
    """The directory of the base that the adapter was trained on."""
    base_hash: str
    adapter: str | None = None
    adapter_sha256: str | None = None
    """Of its weights file, bare hex."""
    version: str | None = None
    """`alias@N`, if it is registered."""
    parent: str | None = None
    """The version that the adapter's training went on from."""
    num_modules: int = 0
    """Linears that the adapter changed."""
    is_dora: bool = False


class Method(_Part):
    """How it was quantized."""

    scheme: Scheme
    group_size: int | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    """llm-compressor's own, word for word; empty for `none`."""
    ignore: tuple[str, ...] = ()
    """Modules that stayed as they were: by the checkpoint's names, and by the model's."""
    num_calibration_rows: int = 0
    calibration_hash: str | None = None
    device: str | None = None
    """Where it was computed."""
    versions: dict[str, str] = Field(default_factory=dict)


class Judged(_Part):
    """Questions of one data file, answered by transformers."""

    num_rows: int
    num_tokens: int
    """Of answers."""
    perplexity: float
    """e to the mean negative log-probability of an answer's token."""
    exact_match: float
    """The share of answers that greedy decoding gives word for word."""

    @classmethod
    def of(cls, quality: Quality) -> Judged:
        return cls(
            num_rows=quality.num_rows,
            num_tokens=quality.num_tokens,
            perplexity=quality.perplexity,
            exact_match=quality.exact_match,
        )


class LoadTested(_Part):
    """Whether an engine loaded it. `reason` says why not, if not."""

    status: Literal["passed", "not tested"]
    reason: str | None = None
    engine: str | None = None
    num_questions: int = 0
    exact_match: float | None = None
    """The share of them that the engine answered word for word."""

    @classmethod
    def of(cls, result: Served | NotServed, engine: str) -> LoadTested:
        if isinstance(result, NotServed):
            return cls(status="not tested", reason=result.reason)
        return cls(
            status="passed",
            engine=engine,
            num_questions=result.num_questions,
            exact_match=result.exact_match,
        )


def warnings_of(tested: LoadTested, judged: Judged | None) -> tuple[str, ...]:
    """For people: what the export passed with, and should be looked at before a release."""
    if judged is None or tested.exact_match is None or tested.exact_match >= judged.exact_match - MAX_SHORTFALL:
        return ()
    return (
        f"{tested.engine} answers {tested.exact_match:.3f} of {tested.num_questions} questions word for word, and "
        f"{judged.exact_match:.3f} of {judged.num_rows} were judged right: more than {MAX_SHORTFALL} less. Find out "
        "why before it is released",
    )


class ExportReport(_Part):
    """One export. A release takes `base_hash` and `probe`."""

    format_version: Literal[1] = 1
    family: str
    base_hash: str
    """Of the merged, unquantized weights: adapters trained on these fit the export, those of the old base don't. Of an
    AWQ export it is that of its own weights, which no adapter fits."""
    unquantized: str
    """The directory to train on, relative to this file's."""
    source: Source
    method: Method
    bytes_before: int
    """Of the unquantized weight files."""
    bytes_after: int
    data: str | None
    data_hash: str | None
    unquantized_quality: Judged | None
    quality: Judged | None
    load_test: LoadTested
    warnings: tuple[str, ...] = ()
    """What should be looked at before it is released."""
    seconds: dict[str, float]
    """By step."""
    probe: tuple[ExportRecord, ...] = ()
    """What the engine of the load test made of answers; empty if there was none."""

    @property
    def task_difference(self) -> float | None:
        """Exact match of the export less that of the unquantized model."""
        if self.quality is None or self.unquantized_quality is None:
            return None
        return self.quality.exact_match - self.unquantized_quality.exact_match


def write_report(report: ExportReport, directory: Path) -> None:
    write_atomic(directory / EXPORT_FILE, report.model_dump_json(indent=1).encode() + b"\n")


def read_report(directory: Path) -> ExportReport:
    return ExportReport.model_validate_json((directory / EXPORT_FILE).read_bytes())


def num_weight_bytes(model_dir: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(model_dir))
