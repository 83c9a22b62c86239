"""One export from its settings to its directory: merge, quantize, load, judge, report."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engines.adapter.base import BaseModel, base_hash_of, read_base
from engines.adapter.mergeable import MergeableAdapter, verify_mergeable
from engines.types import ProbePrompt
from learners.config.export import ExportConfig, LoadTest, Scheme
from learners.data.examples import Example, to_data_url
from learners.data.readers import DataSet, check_rejected, read_data
from learners.export.environment import ensure_environment
from learners.export.load_test import Asked, NotServed, Served, run_load_test
from learners.export.quantize import Quantized, Request, quantize
from learners.export.recipe import pick_group_size, recipe_for
from learners.export.report import (
    ExportReport,
    Judged,
    LoadTested,
    Method,
    ProbeAnswer,
    Source,
    num_weight_bytes,
    write_report,
)
from learners.merge import check_unquantized, copy_texts, merge
from learners.whole import writing_directory

if TYPE_CHECKING:
    from learners.data.collate import Encoder

UNQUANTIZED = "unquantized"
"""The directory, inside an export, of what it is a quantized copy of."""
MAX_BAD_FRACTION = 0.01

Say = Callable[[str], None]


@dataclass(slots=True)
class _Clock:
    """Seconds by step, in order."""

    say: Say
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.say(f"{name} ...")
        begun = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begun, 3)


def run_export(config: ExportConfig, say: Say) -> ExportReport:
    """Writes `config.out`, whole or not at all, and answers what its `export.json` says.

    Raises `AdapterRefused`, `BadRequest` (a setting), `Conflict` (`out` is there), `Refused` (bad rows), `EngineDown`
    (the load test failed) or `Unavailable` (llm-compressor).
    """
    base, adapter = Path(config.model), Path(config.adapter) if config.adapter else None
    check_unquantized(base)
    mergeable = verify_mergeable(adapter, base) if adapter else None
    data, calibration = _read_rows(config.data), _read_rows(config.calibration)
    clock = _Clock(say)
    with writing_directory(Path(config.out), "out") as out, tempfile.TemporaryDirectory() as scratch:
        work = _Work(config, clock, out, Path(scratch), data, calibration)
        unquantized = work.merge(base, mergeable)
        model = read_base(unquantized)
        method = work.quantize(model)
        probes, served = work.load_test(model)
        before, after = work.judge(unquantized)
        shutil.rmtree(out / "logs", ignore_errors=True)
        report = ExportReport(
            family=model.profile.name,
            base_hash=model.base_hash,
            unquantized=UNQUANTIZED if unquantized.parent == out else ".",
            source=_source(config, base, mergeable),
            method=method,
            bytes_before=num_weight_bytes(unquantized),
            bytes_after=num_weight_bytes(out),
            data=config.data,
            data_hash=data.data_hash if data else None,
            unquantized_quality=before,
            quality=after,
            load_test=LoadTested.of(served, "vllm"),
            seconds=clock.seconds,
            probe=_answers(probes, served),
        )
        write_report(report, out)
    return report


@dataclass(frozen=True, slots=True)
class _Work:
    """The steps, which share where they write and what they read."""

    config: ExportConfig
    clock: _Clock
    out: Path
    scratch: Path
    data: DataSet[Example] | None
    calibration: DataSet[Example] | None

    def merge(self, base: Path, adapter: MergeableAdapter | None) -> Path:
        """The directory of the unquantized model: `out` itself if it is all that was asked for."""
        target = self.out
        if self.config.scheme is not Scheme.NONE:
            target = self.out / UNQUANTIZED
            target.mkdir()
        with self.clock.step("merge"):
            if adapter is not None:
                merge(base, adapter, target)
            else:
                _copy(base, target)
        return target

    def quantize(self, model: BaseModel) -> Method:
        config = self.config
        if config.scheme is Scheme.NONE:
            return _unquantized_method()
        with self.clock.step("environment of llm-compressor"):
            root = Path(config.environments)
            python = Path(config.python) if config.python else ensure_environment(root, self.clock.say)
        size = None
        if config.scheme.is_grouped:
            size = pick_group_size(config.group_size, (inputs for _, inputs in model.modules.values()))
        recipe = recipe_for(config.scheme, model.profile, size)
        with self.clock.step("quantize"):
            rows, num_rows = self._write_calibration(model.path)
            needs_accelerator = config.scheme is Scheme.W4A16_AWQ
            request = Request(model.path, recipe, rows, needs_accelerator, config.num_threads)
            made = quantize(python, request, model.profile, self.out, self.scratch)
        return _method(config.scheme, size, request, made, num_rows, self.calibration)

    def _write_calibration(self, model: Path) -> tuple[Path | None, int]:
        if not self.config.scheme.is_calibrated or self.calibration is None:
            return None, 0
        from learners.export.calibration import write_rows

        folder = self.scratch / "calibration"
        num = write_rows(self.calibration.examples, _encoder(model), self.config.num_calibration, folder)
        self.clock.say(f"  fitted to {num} of the {len(self.calibration.examples)} examples of {self.calibration.path}")
        return folder, num

    def load_test(self, model: BaseModel) -> tuple[tuple[ProbePrompt, ...], Served | NotServed]:
        test = self.config.load_test
        if test is None:
            return (), NotServed("the settings say load_test = false")
        examples = self.data.examples[: self.config.num_rows] if self.data else ()
        asked = [Asked(example.prompt, example.answer) for example in examples[: test.num_questions]]
        probes = _probes(examples, test, model.path)
        with self.clock.step("load test"):
            served = run_load_test(self.out, test, asked, probes, self.scratch)
        if isinstance(served, NotServed):
            self.clock.say(f"  not load-tested here: {served.reason}")
        return probes, served

    def judge(self, unquantized: Path) -> tuple[Judged | None, Judged | None]:
        if self.data is None:
            return None, None
        from learners.export.judge import judge

        encoder = _encoder(unquantized)
        rows = [encoder.encode(example) for example in self.data.examples[: self.config.num_rows]]
        with self.clock.step("judge the unquantized model"):
            before = Judged.of(judge(unquantized, rows, encoder.pad_id))
        if unquantized == self.out:
            return before, before
        with self.clock.step("judge the export"):
            return before, Judged.of(judge(self.out, rows, encoder.pad_id))


def _read_rows(path: str | None) -> DataSet[Example] | None:
    if path is None:
        return None
    data = read_data(Path(path))
    check_rejected(data.num_rows, data.rejected, MAX_BAD_FRACTION)
    return data


def _encoder(model: Path) -> Encoder:
    from transformers import AutoProcessor

    from learners.data.collate import Encoder

    return Encoder(AutoProcessor.from_pretrained(model, local_files_only=True))


def _copy(base: Path, target: Path) -> None:
    from engines.adapter.base import INDEX_FILE, weight_files

    copy_texts(base, target)
    for path in (*weight_files(base), base / INDEX_FILE):
        if path.exists():
            shutil.copyfile(path, target / path.name)


def _source(config: ExportConfig, base: Path, adapter: MergeableAdapter | None) -> Source:
    manifest = adapter.manifest if adapter else None
    return Source(
        base=config.model,
        base_hash=adapter.base_hash if adapter else base_hash_of(base),
        adapter=config.adapter,
        adapter_sha256=adapter.weights_sha256 if adapter else None,
        version=config.version,
        parent=manifest.parent if manifest else None,
        num_modules=len(adapter.modules) if adapter else 0,
        is_dora=adapter.use_dora if adapter else False,
    )


def _unquantized_method() -> Method:
    return Method(
        scheme=Scheme.NONE,
        group_size=None,
        recipe={},
        ignore=(),
        num_calibration_rows=0,
        calibration_hash=None,
        device=None,
        versions={},
    )


def _method(
    scheme: Scheme,
    group_size: int | None,
    request: Request,
    made: Quantized,
    num_rows: int,
    calibration: DataSet[Example] | None,
) -> Method:
    return Method(
        scheme=scheme,
        group_size=group_size,
        recipe=dict(request.recipe),
        ignore=made.ignore,
        num_calibration_rows=num_rows,
        calibration_hash=calibration.data_hash if calibration and num_rows else None,
        device=made.device,
        versions=dict(made.versions),
    )


def _probes(examples: Sequence[Example], test: LoadTest, model: Path) -> tuple[ProbePrompt, ...]:
    from learners.probe import choose

    chosen = choose(examples, test.num_probes) if examples and test.num_probes else ()
    if not chosen:
        return ()
    encoder = _encoder(model)
    return tuple(_probe(example, len(encoder.encode_whole(example).answer_ids)) for example in chosen)


def _probe(example: Example, num_tokens: int) -> ProbePrompt:
    image = to_data_url(example.images[0].read()) if example.images else None
    return ProbePrompt(example.prompt[-1].text, example.answer, image, num_tokens)


def _answers(probes: Sequence[ProbePrompt], served: Served | NotServed) -> tuple[ProbeAnswer, ...]:
    if isinstance(served, NotServed):
        return ()
    return tuple(ProbeAnswer.of(probe, score) for probe, score in zip(probes, served.scores, strict=True))
