"""GRPO that samples from quantized engines, corrected and not: the same job, rows and seed over several copies.

All runs have `old = "learner"`: the learner's own log-probabilities stand for the policy that sampled. Corrected ones
weigh each token by learner / engine, cut to 2; uncorrected ones take the engine's samples for the learner's own. All
are synchronous, so that nothing but the number format lies between the two. `max_mismatch` is raised out of the way:
how far a push differs is a figure here, not the end of a run.

Without a GPU the unquantized engine and what W4A16 stands for are served in float32: a CPU may lack the operator.
Exits with 1 if a run failed; what the others found is kept.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from subprocess import Popen

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from benchmark import Metric, write
from dequantized import dequantize
from grpo_run import Run, finished_run, start_job
from stack import WEIGHTS, run_learner

PROMPTS_PER_STEP, GROUP_SIZE = 16, 8
WINDOW = 10
MAX_MISMATCH = 1.0
TERM_S = 30.0
UNQUANTIZED, FP8, W4A16 = "unquantized", "fp8", "w4a16"
SCHEMES = (UNQUANTIZED, FP8, W4A16)
CORRECTIONS = ("truncate", "none")
JOB = """
method = "grpo"
model = "{base}"
data = "{rows}"
eval_data = "{held_out}"
eval_size = {eval_size}
device = "{device}"
learning_rate = {learning_rate}
max_steps = {steps}
save_every = {steps}
prompts_per_step = 16
group_size = 8
max_staleness = 0
max_mismatch = {max_mismatch}
[algorithm]
old = "learner"
[[rewards]]
name = "exact_match"
[rollout]
ray_address = ""
max_running = 16
max_new_tokens = 8
[rollout.own]
model = "{engine}"
kind = "vllm"
max_loras = 3
reserved_for_rollout = 2
{args}
"""
ON_CARD = "args = {gpu-memory-utilization = 0.1, kv-cache-memory-bytes = 2147483648, enforce-eager = true}"
"""Engines that start at the same moment misjudge what memory is free; so they are told."""


@dataclass(frozen=True)
class Plan:
    """One run: which copy the engine serves, how the loss makes up for it, and the seed."""

    scheme: str
    correction: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.scheme}-{self.correction}-{self.seed}"


@dataclass
class Findings:
    """What came of the plans so far: `failed` holds what a run said that did not end well."""

    runs: dict[Plan, Run] = field(default_factory=dict)
    failed: dict[Plan, str] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="quantized", help="of the results' file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=SCHEMES)
    parser.add_argument("--corrections", nargs="+", choices=CORRECTIONS, default=CORRECTIONS)
    parser.add_argument("--steps", type=int, help="by default 40, on a CPU 10")
    parser.add_argument("--eval-size", type=int, default=500, help="held-out questions that each last version is asked")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side; nothing that is reported is a time")
    parser.add_argument("--limit-s", type=float, default=540.0, help="of each run, its engine's start included")
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or (40 if arguments.device == "cuda" else 10)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the jobs are ended
    with tempfile.TemporaryDirectory() as directory:
        return run_all(Path(directory), arguments)


def run_all(root: Path, arguments: argparse.Namespace) -> int:
    jobs = write_jobs(root, arguments)
    choices = itertools.product(range(arguments.seeds), arguments.schemes, arguments.corrections)
    plans = [Plan(scheme, correction, seed) for seed, scheme, correction in choices]
    findings = Findings()
    for first in range(0, len(plans), arguments.at_once):
        run_some(root, jobs, plans[first : first + arguments.at_once], findings, arguments.limit_s)
        report(findings, arguments)
    for plan, said in findings.failed.items():
        print(f"{plan.name} failed: {said}", file=sys.stderr)
    return 1 if findings.failed else 0


def write_jobs(root: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """The copies, the rows, and one job's file for each copy."""
    rows, held_out = root / "rows.jsonl", root / "held-out.jsonl"
    num_rows = str(arguments.steps * PROMPTS_PER_STEP)
    run_learner("toy", "rows", "--set", "corrections", "--num", num_rows, "--seed", "11", "--out", str(rows))
    run_learner("toy", "rows", "--set", "held-out", "--num", str(arguments.eval_size), "--out", str(held_out))
    jobs = {}
    for scheme in arguments.schemes:
        values: Mapping[str, object] = {
            "base": WEIGHTS / "base",
            "engine": copy_of_base(root, scheme, arguments.device),
            "rows": rows,
            "held_out": held_out,
            "max_mismatch": MAX_MISMATCH,
            "args": ON_CARD if arguments.device == "cuda" else "",
        }
        jobs[scheme] = root / f"{scheme}.toml"
        jobs[scheme].write_text(JOB.format(**values, **vars(arguments)))
    return jobs


def copy_of_base(root: Path, scheme: str, device: str) -> Path:
    if scheme != W4A16:
        return WEIGHTS / ("base" if scheme == UNQUANTIZED else "base-fp8")
    copy = root / W4A16
    run_learner("toy", "quantize", "--scheme", W4A16, "--out", str(copy))
    if device == "cuda":
        return copy
    dequantize(copy, root / "dequantized")
    return root / "dequantized"


def run_some(root: Path, jobs: Mapping[str, Path], plans: Sequence[Plan], findings: Findings, limit_s: float) -> None:
    """Side by side. A run that fails or is late does not keep the others from ending."""
    deadline_s = time.monotonic() + limit_s
    processes: dict[Plan, Popen[bytes]] = {}
    try:
        for plan in plans:
            settings = (f"algorithm.correction={plan.correction}", f"seed={plan.seed}")
            processes[plan] = start_job(jobs[plan.scheme], root, plan.name, settings, {})
        wait_all(tuple(processes.values()), deadline_s)
    finally:
        end_all(tuple(processes.values()))
    for plan, process in processes.items():
        try:
            findings.runs[plan] = finished_run(process, root, plan.name)
        except AssertionError as error:
            findings.failed[plan] = str(error)


def wait_all(processes: Sequence[Popen[bytes]], deadline_s: float) -> None:
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline_s:
        time.sleep(0.2)


def end_all(processes: Sequence[Popen[bytes]]) -> None:
    """Asks those that are left to end, so that their engines do too."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    wait_all(processes, time.monotonic() + TERM_S)
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def report(findings: Findings, arguments: argparse.Namespace) -> None:
    """Writes what is known so far: a later run may be cut off."""
    config = vars(arguments) | {
        **{"prompts_per_step": PROMPTS_PER_STEP, "group_size": GROUP_SIZE, "window": WINDOW},
        **{"max_mismatch": MAX_MISMATCH, "failed": {plan.name: said[-500:] for plan, said in findings.failed.items()}},
        "unquantized": "bfloat16" if arguments.device == "cuda" else "float32",
        "w4a16": "vLLM's" if arguments.device == "cuda" else "the numbers that it stands for, in float32",
    }
    command = f"python tests/bench/bench_quantized.py {' '.join(sys.argv[1:])}".strip()
    write(arguments.name, command, config, metrics_of(findings.runs))


def metrics_of(runs: Mapping[Plan, Run]) -> list[Metric]:
    """For each copy and correction over the seeds, then each one's last reward less the unquantized corrected run's."""
    kinds = list(dict.fromkeys((plan.scheme, plan.correction) for plan in runs))
    metrics = []
    for kind in kinds:
        own = [run for plan, run in runs.items() if (plan.scheme, plan.correction) == kind]
        metrics += metrics_of_kind(name_of(*kind), own)
    for plan, run in runs.items():
        reference = runs.get(Plan(UNQUANTIZED, CORRECTIONS[0], plan.seed))
        if reference is not None and run is not reference:
            less = last_reward(run) - last_reward(reference)
            metrics.append(Metric(f"{name_of(plan.scheme, plan.correction)}, seed {plan.seed}: less", "reward", [less]))
    return metrics


def metrics_of_kind(name: str, runs: Sequence[Run]) -> list[Metric]:
    return [
        Metric(f"{name}: first reward", "reward", [run.values("reward")[0] for run in runs]),
        Metric(f"{name}: last reward", "reward", [last_reward(run) for run in runs]),
        Metric(f"{name}: held-out accuracy", "share", [run.evaluations[-1].data["reward"] for run in runs]),
        Metric(f"{name}: mismatch, the worst push", "nat", [max(run.push_mismatches) for run in runs]),
        Metric(f"{name}: mismatch, mean of pushes", "nat", [fmean(run.push_mismatches) for run in runs]),
        Metric(f"{name}: mismatch of sampled tokens, mean of steps", "nat", [mean_of(run, "mismatch") for run in runs]),
        Metric(f"{name}: tokens over the cap", "share", [mean_of(run, "weight_capped") for run in runs]),
        Metric(f"{name}: reward of each step", "reward", [value for run in runs for value in run.values("reward")]),
    ]


def name_of(scheme: str, correction: str) -> str:
    return f"{scheme}, {'corrected' if correction != 'none' else 'uncorrected'}"


def last_reward(run: Run) -> float:
    return fmean(run.values("reward")[-WINDOW:])


def mean_of(run: Run, name: str) -> float:
    """Over the steps that measured it: one without anything to learn from did not."""
    return fmean(float(event.data[name]) for event in run.steps if name in event.data)


if __name__ == "__main__":
    raise SystemExit(main())
