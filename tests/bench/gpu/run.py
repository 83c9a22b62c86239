"""Runs figures in turn, each within its time limit, and writes DIR/FIGURE.json after each.

A file holds the card, the command, how long it took and how it ended, the end of what it printed, and the benchmark's
own result. A figure that fails or runs out of time does not keep the next from running; the exit code says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from card import Card, read_card
from figures import FIGURES, Figure

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "bench-results"

TERM_S = 30.0
TAIL_CHARS = 4000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a figure's command ended. `code` is negative for a signal."""

    seconds: float
    code: int
    is_timed_out: bool
    tail: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="+", choices=sorted(FIGURES), metavar="FIGURE", help=", ".join(FIGURES))
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu")
    parser.add_argument("--limit-s", type=float, help="of each figure, instead of its own")
    parser.add_argument("--more", default="", help="arguments for each figure's command, in one word")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    card = read_card()
    codes = []
    for name in arguments.figures:
        figure = replace(FIGURES[name], limit_s=arguments.limit_s or FIGURES[name].limit_s)
        figure = replace(figure, command=(*figure.command, *arguments.more.split()))
        outcome = run(figure, arguments.out / f"{name}.log")
        keep(figure, outcome, card, arguments.out)
        codes.append(outcome.code)
        print(f"{name}: code {outcome.code} after {outcome.seconds:.0f} s", flush=True)
    return 1 if any(codes) else 0


def run(figure: Figure, log_path: Path) -> Outcome:
    """Ends the command and all of its process group at the limit."""
    began_s = time.monotonic()
    if figure.result:
        (RESULTS / figure.result).unlink(missing_ok=True)  # an earlier run's
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            figure.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            process.wait(figure.limit_s)
            is_timed_out = False
        except subprocess.TimeoutExpired:
            is_timed_out = True
            _end(process)
    tail = log_path.read_text(errors="replace")[-TAIL_CHARS:]
    return Outcome(time.monotonic() - began_s, process.returncode, is_timed_out, tail)


def keep(figure: Figure, outcome: Outcome, card: Card, out: Path) -> None:
    """Writes what is known, a picture too."""
    command = ["python", *figure.command[1:]]
    found: dict[str, Any] = {"figure": figure.name, "card": asdict(card), "command": " ".join(command)}
    result = RESULTS / (figure.result or figure.name)
    found |= asdict(outcome) | {"result": json.loads(result.read_text()) if result.is_file() else None}
    (out / f"{figure.name}.json").write_text(json.dumps(found, indent=2) + "\n")
    if (picture := result.with_suffix(".png")).is_file():
        shutil.copy(picture, out)


def _end(process: subprocess.Popen[bytes]) -> None:
    """First as a user would, so that it stops what it started elsewhere."""
    process.terminate()
    try:
        process.wait(TERM_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
