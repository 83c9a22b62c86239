"""The steps of one export: what each reads, writes and answers. `run` puts them in order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engines.adapter.base import BaseModel, weight_files
from engines.adapter.mergeable import MergeableAdapter
from engines.types import ProbePrompt
from learners.config.export import ExportConfig, Scheme
from learners.data.examples import Example, to_data_url
from learners.data.readers import DataSet
from learners.export.environment import ensure_environment
from learners.export.load_test import Asked, NotServed, Served, run_load_test
from learners.export.quantize import Request, quantize
from learners.export.recipe import pick_group_size, recipe_for
from learners.export.report import Judged, Method
from learners.merge import copy_index, copy_texts, merge

if TYPE_CHECKING:
    from learners.data.collate import Encoder

UNQUANTIZED = "unquantized"
"""The directory, inside an export, of what it is a quantized copy of."""

Say = Callable[[str], None]


@dataclass(slots=True)
class Clock:
    """Says which step begins; seconds by step, in order."""

    say: Say
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.say(f"{name} ...")
        begun = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begun, 3)


@dataclass(frozen=True, slots=True)
class Rows:
    """Those that a model is judged on, and those that a scheme is fitted to."""

    data: DataSet[Example] | None
    calibration: DataSet[Example] | None


@dataclass(frozen=True, slots=True)
class Steps:
    """`out` is filled; `scratch` goes afterwards."""

    config: ExportConfig
    rows: Rows
    clock: Clock
    out: Path
    scratch: Path

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
        """Fills `out` with the quantized copy of `model`."""
        config = self.config
        if config.scheme is Scheme.NONE:
            return Method(scheme=Scheme.NONE)
        with self.clock.step("environment of llm-compressor"):
            root = Path(config.environments)
            python = Path(config.python) if config.python else ensure_environment(root, self.clock.say)
        size = None
        if config.scheme.is_grouped:
            size = pick_group_size(config.group_size, (inputs for _, inputs in model.modules.values()))
        recipe = recipe_for(config.scheme, model.profile, size)
        with self.clock.step("quantize"):
            folder, num_rows = self._write_calibration(model.path)
            request = Request(model.path, recipe, folder, config.scheme.scales_inputs, config.num_threads)
            made = quantize(python, request, model.profile, self.out, self.scratch)
        calibration = self.rows.calibration
        return Method(
            scheme=config.scheme,
            group_size=size,
            recipe=recipe,
            ignore=made.ignore,
            num_calibration_rows=num_rows,
            calibration_hash=calibration.data_hash if calibration and num_rows else None,
            device=made.device,
            versions=dict(made.versions),
        )

    def _write_calibration(self, model: Path) -> tuple[Path | None, int]:
        rows = self.rows.calibration
        if not self.config.scheme.is_calibrated or rows is None:
            return None, 0
        from learners.export.calibration import write_rows

        folder = self.scratch / "calibration"
        num = write_rows(rows.examples, _encoder(model), self.config.num_calibration, folder)
        self.clock.say(f"  fitted to {num} of the {len(rows.examples)} examples of {rows.path}")
        return folder, num

    def load_test(self, model: BaseModel) -> tuple[tuple[ProbePrompt, ...], Served | NotServed]:
        """The prompts that were scored, and what the engine said."""
        test = self.config.load_test
        if test is None:
            return (), NotServed("the settings say load_test = false")
        examples = self._judged_on()
        asked = [Asked(example.prompt, example.answer) for example in examples[: test.num_questions]]
        probes = _probes(examples, test.num_probes, model.path)
        with self.clock.step("load test"):
            served = run_load_test(self.out, test, asked, probes, self.scratch)
        if isinstance(served, NotServed):
            self.clock.say(f"  not load-tested here: {served.reason}")
        return probes, served

    def judge(self, unquantized: Path) -> tuple[Judged | None, Judged | None]:
        """The unquantized model and the export, on the same rows; None without rows."""
        if self.rows.data is None:
            return None, None
        from learners.export.judge import judge

        encoder = _encoder(unquantized)
        rows = [encoder.encode(example) for example in self._judged_on()]
        with self.clock.step("judge the unquantized model"):
            before = Judged.of(judge(unquantized, rows, encoder.pad_id))
        if unquantized == self.out:
            return before, before
        with self.clock.step("judge the export"):
            return before, Judged.of(judge(self.out, rows, encoder.pad_id))

    def _judged_on(self) -> Sequence[Example]:
        return self.rows.data.examples[: self.config.num_rows] if self.rows.data else ()


def _encoder(model: Path) -> Encoder:
    from transformers import AutoProcessor

    from learners.data.collate import Encoder

    return Encoder(AutoProcessor.from_pretrained(model, local_files_only=True))


def _copy(base: Path, target: Path) -> None:
    copy_texts(base, target)
    copy_index(base, target)
    for path in weight_files(base):
        shutil.copyfile(path, target / path.name)


def _probes(examples: Sequence[Example], num: int, model: Path) -> tuple[ProbePrompt, ...]:
    from learners.probe import choose

    chosen = choose(examples, num) if examples and num else ()
    if not chosen:
        return ()
    encoder = _encoder(model)
    return tuple(_probe(example, len(encoder.encode_whole(example).answer_ids)) for example in chosen)


def _probe(example: Example, num_tokens: int) -> ProbePrompt:
    image = to_data_url(example.images[0].read()) if example.images else None
    return ProbePrompt(example.prompt[-1].text, example.answer, image, num_tokens)
