"""How long a user waits for `tandem --help`. Writes bench-results/cli-help.json."""

import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

NUM_RUNS = 7
COMMAND = [sys.executable, "-m", "gateway.cli", "--help"]


def main() -> None:
    runs = [round(measure(), 4) for _ in range(NUM_RUNS)]
    summary = {"median": statistics.median(runs), "min": min(runs), "max": max(runs), "unit": "s"}
    document = {
        "name": "cli-help",
        "command": "python tests/bench/bench_cli_help.py",
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), "typer": version("typer")},
        "config": {"num_runs": NUM_RUNS},
        "runs": [{"wall_s": run} for run in runs],
        "summary": {"wall_s": summary},
    }
    out = Path("bench-results")
    out.mkdir(exist_ok=True)
    (out / "cli-help.json").write_text(json.dumps(document, indent=2) + "\n")
    print(f"tandem --help: {summary['median']:.2f} s (median of {NUM_RUNS})")


def measure() -> float:
    start_s = time.perf_counter()
    subprocess.run(COMMAND, stdout=subprocess.DEVNULL, check=True, timeout=30)
    return time.perf_counter() - start_s


if __name__ == "__main__":
    main()
