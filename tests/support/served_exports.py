"""Exports that another machine wrote, asked on an engine of this one.

`FOLDER` holds them as `tests/bench/bench_export.py --keep` leaves them; their `unquantized` is not needed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stack import ROOT, run_learner

from engines.errors import TandemError
from engines.export_probe import EXPORT_FILE
from engines.schemes import here
from learners.config.export import LoadTest
from learners.data.readers import read_data
from learners.export.load_test import Asked, NotServed, load_test
from learners.export.report import ExportReport, read_report

FOLDER = ROOT / "data" / "exports"
ON_CARD = {"gpu-memory-utilization": 0.1, "kv-cache-memory-bytes": 2 << 30, "enforce-eager": True}
"""Engines that start at the same moment misjudge what memory is free; so they are told."""


@dataclass(frozen=True)
class Found:
    """`exact_match` is None if the export was not served, for the reason."""

    name: str
    report: ExportReport
    seconds: float
    exact_match: float | None
    reason: str = ""


def exports_in(folder: Path = FOLDER) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{EXPORT_FILE}"))


def read_questions(scratch: Path, num: int) -> list[Asked]:
    file = scratch / "held-out.jsonl"
    run_learner("toy", "rows", "--set", "held-out", "--num", str(num), "--out", str(file))
    return [Asked(example.prompt, example.answer) for example in read_data(file).examples]


async def serve(export: Path, asked: Sequence[Asked]) -> Found:
    report, begun_s = read_report(export), time.monotonic()
    test = LoadTest(args={} if here().is_cpu else ON_CARD)
    with tempfile.TemporaryDirectory() as logs:
        try:
            served = await load_test(export, test, asked, (), Path(logs))
        except TandemError as error:
            served = NotServed(f"{error.message} {error.detail}".strip())
    seconds = time.monotonic() - begun_s
    if isinstance(served, NotServed):
        print(f"{export.name}: not served: {served.reason}", file=sys.stderr, flush=True)
        return Found(export.name, report, seconds, None, served.reason)
    return Found(export.name, report, seconds, served.exact_match)
