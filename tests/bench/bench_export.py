"""Exports of a small model with an SFT adapter: bytes, perplexity and accuracy against the unquantized merged model.

One file for each scheme. Every model is judged on the same held-out questions by transformers, and the export also by
the engine of its load test where this machine has the kernels of its scheme; else `served_exact_match` is missing.
GPTQ and AWQ are fitted to the adapter's own rows, whose images are others than the held-out ones'. `--keep` keeps the
exports, as `FAMILY-SCHEME`: bench_export_served.py serves them on a machine that has the kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from benchmark import ROOT, Metric, write
from stack import WEIGHTS, run_learner

from engines.adapter import read_base
from learners.config import Scheme
from learners.export.report import ExportReport, read_report

SCHEMES = ("fp8", "w4a16-rtn", "w4a16-gptq")
SFT = {"rank": 16, "alpha": 32, "learning_rate": 1e-3, "batch_size": 16}
EXPORT_TIMEOUT_S = 1800.0
NUM_CORRECTIONS, NUM_QUESTIONS = 400, 500


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        rows, held_out = root / "corrections.jsonl", root / "held-out.jsonl"
        for kind, num, file in (("corrections", NUM_CORRECTIONS, rows), ("held-out", NUM_QUESTIONS, held_out)):
            run_learner("toy", "rows", "--set", kind, "--num", str(num), "--out", str(file))
        adapter = options.adapter or train(root, options, rows)
        family = read_base(options.base).profile.name
        for scheme in options.schemes:
            out = (options.keep or root) / f"{family}-{scheme}"
            record(export(options, adapter, scheme, rows, held_out, out), options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=absolute, default=WEIGHTS / "base", help="the unquantized model")
    parser.add_argument(
        "--adapter", type=absolute, help="of that model, trained with these settings before; by default it is trained"
    )
    parser.add_argument("--max-steps", type=int, default=75, help="of training")
    parser.add_argument("--keep", type=absolute, help="the folder to keep the exports in; by default they go")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--python", default="", help="an interpreter that has llm-compressor; by default one is made")
    parser.add_argument("--engine-python", default="", help="an interpreter that has the engine")
    return parser.parse_args()


def absolute(word: str) -> Path:
    return Path(word).absolute()


def train(root: Path, options: argparse.Namespace, rows: Path) -> Path:
    """As deploy/examples/job-sft.toml."""
    settings = "".join(f"{key} = {value}\n" for key, value in sft_of(options).items())
    job = root / "job.toml"
    job.write_text(f'name = "sft"\nroot = "{root}/jobs"\nmodel = "{options.base}"\ndata = "{rows}"\n{settings}')
    result = json.loads(run_learner("sft", "--config", str(job), "--json"))
    return root / "jobs" / "sft" / str(result["best_checkpoint"])


def sft_of(options: argparse.Namespace) -> dict[str, float]:
    return {**SFT, "max_steps": options.max_steps}


def export(
    options: argparse.Namespace, adapter: Path, scheme: str, rows: Path, held_out: Path, out: Path
) -> ExportReport:
    files = ("--adapter", str(adapter), "--data", str(held_out), "--calibration", str(rows), "--out", str(out))
    settings = (
        f"environments={ROOT / 'data' / 'envs'}",
        f"python={options.python}",
        f"load_test.python={options.engine_python}",
    )
    flags = [word for setting in settings for word in ("--set", setting)]
    command = (sys.executable, "-m", "learners", "export", "--model", str(options.base), *files, "--scheme", scheme)
    subprocess.run((*command, *flags), check=True, timeout=EXPORT_TIMEOUT_S, cwd=ROOT)
    return read_report(out)


def record(report: ExportReport, options: argparse.Namespace) -> None:
    method, before, after = report.method, report.unquantized_quality, report.quality
    assert before is not None
    assert after is not None
    metrics = [
        Metric("unquantized_bytes", "bytes", [report.bytes_before]),
        Metric("bytes", "bytes", [report.bytes_after]),
        Metric("unquantized_perplexity", "", [before.perplexity]),
        Metric("perplexity", "", [after.perplexity]),
        Metric("unquantized_exact_match", "share", [before.exact_match]),
        Metric("exact_match", "share", [after.exact_match]),
        *(Metric(f"{step.replace(' ', '_')}_s", "s", [seconds]) for step, seconds in report.seconds.items()),
    ]
    if report.load_test.exact_match is not None:
        metrics.append(Metric("served_exact_match", "share", [report.load_test.exact_match]))
    config = {
        "family": report.family,
        "scheme": method.scheme.value,
        "group_size": method.group_size,
        "recipe": method.recipe,
        "num_calibration_rows": method.num_calibration_rows,
        "quantized_on": method.device,
        "quantized_by": method.versions,
        "num_left_alone": len(method.ignore),
        "num_questions": after.num_rows,
        "load_test": report.load_test.reason or report.load_test.status,
        "sft": sft_of(options),
    }
    write(f"export-{report.family}-{method.scheme.value}", command_of(options, method.scheme), config, metrics)


def command_of(options: argparse.Namespace, scheme: Scheme) -> str:
    """What makes this file alone; paths are relative to the repository."""
    paths = {"--base": options.base, "--adapter": options.adapter, "--python": options.python}
    paths |= {"--engine-python": options.engine_python}
    given = ["--max-steps", str(options.max_steps)]
    given += [word for flag, path in paths.items() if path for word in (flag, os.path.relpath(path, ROOT))]
    return shlex.join(["python", "tests/bench/bench_export.py", *given, "--schemes", scheme.value])


if __name__ == "__main__":
    main()
