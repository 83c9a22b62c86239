"""Asynchronous against synchronous GRPO: the same loop, work, seed and machine, in turn; `max_staleness` alone differs.

In `plain`, learner and engine share the cores. In `slow`, each trajectory also waits for a tool (log-normal), so that
sampling is what a run waits for, as it is with long answers. Times are from the first version delivered on, without the
engine's start.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from benchmark import Metric, write
from grpo_run import WINDOW, Run, run_job
from slow_tool import NAME as SLOW_TOOL
from slow_tool import install
from stack import WEIGHTS, run_learner

JOB = """
method = "grpo"
model = "{model}"
data = "{data}"
learning_rate = 1e-3
max_steps = {max_steps}
save_every = {max_steps}
prompts_per_step = 16
group_size = 8
[[rewards]]
name = "exact_match"
[rollout]
ray_address = ""
max_running = 32
max_new_tokens = 8
{rollout}
[rollout.own]
model = "{engine}"
kind = "vllm"
max_loras = 7
reserved_for_rollout = 4
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--reward", type=float, default=0.8, help="the fixed reward that is run to")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--scene", choices=("plain", "slow"), nargs="+", default=["plain", "slow"])
    parser.add_argument("--median-s", type=float, default=0.5, help="of the tool's delay")
    parser.add_argument("--sigma", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        return run_all(Path(directory), arguments)


def run_all(root: Path, arguments: argparse.Namespace) -> int:
    rows = root / "rows.jsonl"
    num_rows = arguments.steps * 16
    run_learner("toy", "rows", "--set", "corrections", "--num", str(num_rows), "--seed", "7", "--out", str(rows))
    path = install(root / "packages")
    runs: dict[tuple[str, int], list[Run]] = {}
    for seed in range(arguments.seeds):
        for scene in arguments.scene:
            for staleness in arguments.staleness:
                run = run_scene(root, scene, staleness, seed, rows, path, arguments)
                runs.setdefault((scene, staleness), []).append(run)
    metrics = [
        metric for (scene, staleness), own in runs.items() for metric in metrics_of(scene, staleness, own, arguments)
    ]
    metrics += [ratio for scene in arguments.scene for ratio in ratios_of(scene, runs, arguments)]
    config = {key: value for key, value in vars(arguments).items()} | {"window": WINDOW, "engine": "vllm, FP8, one"}
    write("grpo", f"python tests/bench/bench_grpo.py {' '.join(sys.argv[1:])}".strip(), config, metrics)
    return 0


def run_scene(
    root: Path, scene: str, staleness: int, seed: int, rows: Path, path: str, arguments: argparse.Namespace
) -> Run:
    name = f"{scene}-{staleness}-{seed}"
    delay = f"environment_options = {{median_s = {arguments.median_s}, sigma = {arguments.sigma}}}"
    slow = f'environment = "{SLOW_TOOL}"\nmax_turns = 2\n{delay}' if scene == "slow" else ""
    job = root / f"{name}.toml"
    values = {"model": WEIGHTS / "base", "engine": WEIGHTS / "base-fp8", "data": rows, "max_steps": arguments.steps}
    job.write_text(JOB.format(**values, rollout=slow))
    python_path = os.pathsep.join(part for part in (path, os.environ.get("PYTHONPATH", "")) if part)
    return run_job(job, root, name, (f"max_staleness={staleness}", f"seed={seed}"), {"PYTHONPATH": python_path})


def metrics_of(scene: str, staleness: int, runs: Sequence[Run], arguments: argparse.Namespace) -> list[Metric]:
    name = f"{scene}, max_staleness {staleness}"
    reached = [seconds for run in runs if (seconds := run.seconds_to(arguments.reward)) is not None]
    metrics = [
        Metric(f"{name}: all steps", "s", [run.at_s[-1] for run in runs]),
        Metric(f"{name}: last reward", "reward", [fmean(run.values("reward")[-WINDOW:]) for run in runs]),
        Metric(f"{name}: samples a second", "1/s", [128 * len(run.steps) / run.at_s[-1] for run in runs]),
        Metric(f"{name}: staleness", "steps", [fmean(run.values("staleness_mean")) for run in runs]),
        Metric(f"{name}: learner idle", "share", [fmean(run.values("learner_idle")) for run in runs]),
        Metric(f"{name}: engine idle", "share", [fmean(run.values("engine_idle")) for run in runs]),
        Metric(f"{name}: dropped", "groups", [sum(run.values("dropped")) for run in runs]),
    ]
    return [*metrics, Metric(f"{name}: to reward {arguments.reward}", "s", reached)] if reached else metrics


def ratios_of(scene: str, runs: dict[tuple[str, int], list[Run]], arguments: argparse.Namespace) -> list[Metric]:
    """Synchronous over asynchronous: of all steps, and of the time to the reward where both reached it."""
    first, *others = arguments.staleness
    ratios = []
    for other in others:
        pairs = list(zip(runs[scene, first], runs[scene, other], strict=True))
        name = f"{scene}, {first} / {other}"
        ratios.append(Metric(f"{name}: all steps", "x", [a.at_s[-1] / b.at_s[-1] for a, b in pairs]))
        reached = [(a.seconds_to(arguments.reward), b.seconds_to(arguments.reward)) for a, b in pairs]
        both = [a / b for a, b in reached if a is not None and b is not None]
        if both:
            ratios.append(Metric(f"{name}: to reward {arguments.reward}", "x", both))
    return ratios


if __name__ == "__main__":
    raise SystemExit(main())
