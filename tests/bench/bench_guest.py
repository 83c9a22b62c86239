"""What users feel of GRPO on their engine: training off and on in turn, for several settings of the cap.

Users ask the gateway at a constant rate all the time, each for a picture's answer as a stream. In the phases that are
`on`, a GRPO job is a guest on the same engine. Each of them is compared with the phases without before and after it. A
first job, which is not counted, lets the engine compile what guests need.
`uncapped` is a cap that never cuts; `1.15:cpu` is a cap whose job learns on the CPU. Exits with 1 if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from benchmark import ROOT, write
from constant_users import ConstantUsers, Streamed
from guest_figures import Phase, metrics_of, pairs_of, points_of, rows_of
from guest_job import GuestJob, GuestSettings
from guest_picture import draw
from stack import WEIGHTS, Setting, Stack, run_learner

from gateway.demo.questions import read_questions

UNCAPPED = "uncapped"
UNCAPPED_FACTOR = 1e6
NUM_QUESTIONS = 400
NUM_ROWS = 2000
NUM_TOKENS = 16
WARM_S = 8.0
WARM_UP_S = 25.0
"""Of the first job: its cap's pause, and some groups and steps."""
SETTLE_S = 16.0
"""After the first version is sampled from: until the cap has its baseline and begins to grow."""
UNCAPPED_SETTLE_S = 56.0
"""Until it has grown to the end."""
LIMIT = 1.15
MAX_MISMATCH = {"cpu": 0.02, "cuda": 0.1}
"""Both sides compute in bfloat16 on a GPU."""
ENGINES: dict[str, dict[str, Setting]] = {
    "cpu": {"engines.small.dtype": "float32"},
    "cuda": {
        "engines.small.dtype": "bfloat16",
        "engines.small.args.gpu-memory-utilization": 0.4,
    },
}


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the stack is stopped
    with tempfile.TemporaryDirectory() as directory:
        return run(Path(directory), arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="guest", help="of the results' file")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the engine")
    parser.add_argument("--learner-threads", type=int, default=1, help="of matrix products on the CPU")
    parser.add_argument("--engine-model", choices=("base", "base-fp8"), help="by default FP8 on a CPU")
    parser.add_argument("--factors", nargs="+", default=["1.15", "1.5", "3", UNCAPPED], help="users_factor[:device]")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--phase-s", type=float, default=40.0)
    parser.add_argument("--off-s", type=float, help="a phase without training, by default as long as the others")
    parser.add_argument("--rate", type=float, help="users' requests a second; by default 2 on a CPU, 25 on a GPU")
    parser.add_argument("--max-running", type=int, default=16)
    parser.add_argument("--picture", type=Path, default=ROOT / "bench-results" / "guest.png")
    parser.add_argument("--answers", type=Path, help="a file for when each chunk of each answer came")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda" or (arguments.device == "auto" and has_gpu())
    arguments.device = "cuda" if on_gpu else "cpu"
    arguments.rate = arguments.rate or (25.0 if on_gpu else 2.0)
    arguments.off_s = arguments.off_s or arguments.phase_s
    arguments.engine_model = arguments.engine_model or ("base" if on_gpu else "base-fp8")
    return arguments


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def run(root: Path, arguments: argparse.Namespace) -> int:
    questions, rows = root / "questions.jsonl", root / "rows.jsonl"
    run_learner("toy", "rows", "--set", "dev", "--num", str(NUM_QUESTIONS), "--out", str(questions))
    run_learner("toy", "rows", "--set", "corrections", "--num", str(NUM_ROWS), "--seed", "7", "--out", str(rows))
    settings = {"engines.small.max_loras": 6, "engines.small.reserved_for_rollout": 3, **ENGINES[arguments.device]}
    stack = Stack.make(root, "vllm", WEIGHTS / arguments.engine_model, settings=settings)
    guests = GuestSettings(
        data=rows,
        num_threads=arguments.learner_threads,
        max_running=arguments.max_running,
        max_mismatch=MAX_MISMATCH[arguments.device],
    )
    stack.start()
    try:
        stack.wait_in_service()
        answers = asyncio.run(measure(stack, root, questions, guests, arguments))
    finally:
        stack.stop()
    failures = [one.error for one in answers if one.error]
    print("\n".join(failures[:5]) or "every request was answered")
    return 1 if failures else 0


async def measure(
    stack: Stack, root: Path, questions: Path, guests: GuestSettings, arguments: argparse.Namespace
) -> tuple[Streamed, ...]:
    """Off, on, off, on, ... and off; what is known is written after each pair. Returns all of the users' answers."""
    users = ConstantUsers(
        stack.url, stack.alias, read_questions(questions), rate_per_s=arguments.rate, num_tokens=NUM_TOKENS
    )
    async with users:
        await asyncio.sleep(WARM_S)
        await warm_up(GuestJob(stack, root, "warm-up", guests, UNCAPPED_FACTOR))
        phases = [await watch(users, arguments.off_s)]
        for number, label in enumerate(arguments.factors * arguments.rounds):
            factor, _, device = label.partition(":")
            settings = replace(guests, device=device or "auto")
            job = GuestJob(stack, root, f"guest-{number}", settings, factor_of(factor))
            phases.append(await watch_guest(users, job, label, arguments.phase_s))
            phases.append(await watch(users, arguments.off_s))
            report(users, phases, arguments)
    return users.answers


async def warm_up(job: GuestJob) -> None:
    try:
        await job.start()
        await asyncio.sleep(WARM_UP_S)
    finally:
        await job.stop()


def factor_of(word: str) -> float:
    return UNCAPPED_FACTOR if word == UNCAPPED else float(word)


async def watch(users: ConstantUsers, seconds: float) -> Phase:
    begin_s = time.monotonic()
    await asyncio.sleep(seconds)
    end_s = time.monotonic()
    await users.wait_answered()
    return Phase("", users.between(begin_s, end_s))


async def watch_guest(users: ConstantUsers, job: GuestJob, label: str, seconds: float) -> Phase:
    try:
        await job.start()
        await asyncio.sleep(UNCAPPED_SETTLE_S if label.startswith(UNCAPPED) else SETTLE_S)
        begin_s = time.time()
        seen = await watch(users, seconds)
        job.check()
        return Phase(label, seen.answers, job.samples_per_s(begin_s, time.time()))
    finally:
        await job.stop()


def report(users: ConstantUsers, phases: Sequence[Phase], arguments: argparse.Namespace) -> None:
    config = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    command = f"python tests/bench/bench_guest.py {' '.join(sys.argv[1:])}".strip()
    write(arguments.name, command, config, metrics_of(users.answers, phases))
    draw(points_of(pairs_of(phases)), LIMIT, arguments.picture)
    if arguments.answers:
        arguments.answers.write_text("".join(f"{json.dumps(row)}\n" for row in rows_of(phases)))


if __name__ == "__main__":
    sys.exit(main())
