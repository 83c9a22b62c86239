"""GRPO here beside TRL's `GRPOTrainer`: one base, the same rows in the same order, sizes, loss and steps, in turn.

On a CPU TRL generates with transformers in all of the machine's threads; here a vLLM and the learner have one each.
With `--device cuda` both have vLLM and the learner on the same card. All prompts are of one length, as TRL needs on
this model. Samples a second are from the end of the first step to the end of the last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from benchmark import Metric, write
from grpo_run import RUN_TIMEOUT_S, WINDOW, Run, run_job
from stack import ROOT, WEIGHTS, run_learner

from learners.data.collate import Encoder
from learners.data.prompts import parse_prompt
from learners.data.readers import read_rows
from learners.schedule import build_schedule

PROMPTS_PER_STEP, GROUP_SIZE, MAX_NEW_TOKENS = 16, 8, 8
LEARNING_RATE, RANK, ALPHA = 1e-3, 16, 32
MAX_MODEL_LEN = 1024
NUM_ASKED = 3000
"""Questions of all lengths, of which those of the commonest one are taken."""
JOB = """
method = "grpo"
model = "{model}"
data = "{data}"
device = "{device}"
learning_rate = {learning_rate}
rank = {rank}
alpha = {alpha}
max_steps = {steps}
save_every = {steps}
prompts_per_step = {prompts_per_step}
group_size = {group_size}
max_staleness = {staleness}
[[rewards]]
name = "exact_match"
[rollout]
ray_address = ""
max_running = {max_running}
max_new_tokens = {max_new_tokens}
[rollout.own]
model = "{model}"
kind = "vllm"
max_model_len = {max_model_len}
max_loras = {slots}
reserved_for_rollout = {slots}
{args}
"""


@dataclass(frozen=True)
class Curve:
    """Each step's mean reward, and when it ended, in seconds since sampling for the first one could begin."""

    rewards: tuple[float, ...]
    at_s: tuple[float, ...]

    @classmethod
    def of(cls, run: Run) -> Curve:
        return cls(tuple(run.values("reward")), run.at_s)

    @property
    def samples_per_s(self) -> float:
        between = len(self.at_s) - 1
        return PROMPTS_PER_STEP * GROUP_SIZE * between / (self.at_s[-1] - self.at_s[0])

    @property
    def last_reward(self) -> float:
        return fmean(self.rewards[-WINDOW:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--staleness", type=int, default=1, help="ours; TRL is synchronous")
    parser.add_argument("--gpu-memory", type=float, default=0.3, help="either vLLM's share of the card")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        return run_all(Path(directory), arguments)


def run_all(root: Path, arguments: argparse.Namespace) -> int:
    rows = rows_of_one_length(root, arguments.steps * PROMPTS_PER_STEP)
    pairs = []
    for seed in range(arguments.seeds):
        ours = run_ours(root, rows, seed, arguments)
        print(f"ours-{seed}: all steps in {ours.at_s[-1]:.1f} s", file=sys.stderr, flush=True)
        pairs.append((ours, run_trl(root, rows, seed, arguments)))
    sizes = {"prompts_per_step": PROMPTS_PER_STEP, "group_size": GROUP_SIZE, "max_new_tokens": MAX_NEW_TOKENS}
    config = vars(arguments) | sizes | {"window": WINDOW, "learning_rate": LEARNING_RATE, "rank": RANK, "alpha": ALPHA}
    command = f"python tests/bench/bench_trl.py {' '.join(sys.argv[1:])}".strip()
    name = "trl" if arguments.device == "cpu" else f"trl-{arguments.device}"
    write(name, command, config, metrics_of(pairs))
    return 0


def rows_of_one_length(root: Path, num: int) -> Path:
    """A file of `num` rows whose prompts, images included, have as many tokens as most prompts have."""
    from transformers import AutoProcessor

    asked, rows = root / "asked.jsonl", root / "rows.jsonl"
    run_learner("toy", "rows", "--set", "corrections", "--num", str(NUM_ASKED), "--seed", "7", "--out", str(asked))
    encoder = Encoder(AutoProcessor.from_pretrained(WEIGHTS / "base", local_files_only=True))
    by_length: dict[int, list[str]] = defaultdict(list)
    lines = asked.read_text("utf-8").splitlines()
    for line, prompt in zip(lines, read_rows(asked, parse_prompt).examples, strict=True):
        by_length[len(encoder.encode_prompt(prompt.messages).prompt_ids)].append(line)
    commonest = max(by_length.values(), key=len)
    assert len(commonest) >= num, f"only {len(commonest)} prompts are of one length, --steps needs {num}"
    rows.write_text("".join(line + "\n" for line in commonest[:num]), "utf-8")
    return rows


def run_ours(root: Path, rows: Path, seed: int, arguments: argparse.Namespace) -> Run:
    is_cuda = arguments.device == "cuda"
    job = root / f"ours-{seed}.toml"
    values = {
        "model": WEIGHTS / "base",
        "data": rows,
        "device": arguments.device,
        "steps": arguments.steps,
        "staleness": arguments.staleness,
        "slots": max(3, arguments.staleness + 2),
        "max_running": PROMPTS_PER_STEP * (arguments.staleness + 1),
        "args": f"args = {{gpu-memory-utilization = {arguments.gpu_memory}}}" if is_cuda else "",
    }
    sizes = {"prompts_per_step": PROMPTS_PER_STEP, "group_size": GROUP_SIZE, "max_new_tokens": MAX_NEW_TOKENS}
    learning = {"learning_rate": LEARNING_RATE, "rank": RANK, "alpha": ALPHA, "max_model_len": MAX_MODEL_LEN}
    job.write_text(JOB.format(**values, **sizes, **learning))
    return run_job(job, root, f"ours-{seed}", (f"seed={seed}",), {})


def run_trl(root: Path, rows: Path, seed: int, arguments: argparse.Namespace) -> Curve:
    data, out = root / f"ordered-{seed}.jsonl", root / f"trl-{seed}.jsonl"
    data.write_text("".join(line + "\n" for line in in_order(rows, seed, arguments.steps)), "utf-8")
    values: Mapping[str, object] = {
        "model": WEIGHTS / "base",
        "data": data,
        "out": out,
        "device": arguments.device,
        "steps": arguments.steps,
        "prompts-per-step": PROMPTS_PER_STEP,
        "group-size": GROUP_SIZE,
        "max-new-tokens": MAX_NEW_TOKENS,
        "max-model-len": MAX_MODEL_LEN,
        "gpu-memory": arguments.gpu_memory,
        "learning-rate": LEARNING_RATE,
        "rank": RANK,
        "alpha": ALPHA,
        "seed": seed,
    }
    print(f"trl-{seed} ...", file=sys.stderr, flush=True)
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    script = ROOT / "tests" / "support" / "trl_grpo.py"
    # What it prints is not kept back: a run that is ended from outside shows how far it came.
    done = subprocess.run([sys.executable, str(script), *words], stdout=sys.stderr, timeout=RUN_TIMEOUT_S, check=False)
    assert done.returncode == 0, f"TRL ended with {done.returncode}; what it said is above"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == arguments.steps, f"TRL made {len(lines)} steps"
    return Curve(tuple(line["reward"] for line in lines), tuple(line["at_s"] for line in lines))


def in_order(rows: Path, seed: int, num_steps: int) -> list[str]:
    """The lines as a job of this seed goes through them."""
    lines = rows.read_text("utf-8").splitlines()
    schedule = build_schedule(len(lines), batch_size=PROMPTS_PER_STEP, epochs=None, max_steps=num_steps, seed=seed)
    return [lines[index] for index in schedule.order]


def metrics_of(pairs: Sequence[tuple[Run, Curve]]) -> list[Metric]:
    ours, trl = [Curve.of(run) for run, _ in pairs], [curve for _, curve in pairs]
    metrics = []
    for name, curves in {"ours": ours, "TRL": trl}.items():
        metrics += [
            Metric(f"{name}: samples a second", "1/s", [curve.samples_per_s for curve in curves]),
            Metric(f"{name}: all steps", "s", [curve.at_s[-1] for curve in curves]),
            Metric(f"{name}: first reward", "reward", [fmean(curve.rewards[:WINDOW]) for curve in curves]),
            Metric(f"{name}: last reward", "reward", [curve.last_reward for curve in curves]),
        ]
    ratios = [a.samples_per_s / b.samples_per_s for a, b in zip(ours, trl, strict=True)]
    shares = [
        Metric(f"ours: {name.replace('_', ' ')}", unit, [fmean(run.values(name)) for run, _ in pairs])
        for name, unit in {"staleness_mean": "steps", "learner_idle": "share", "engine_idle": "share"}.items()
    ]
    return [*metrics, *shares, Metric("ours / TRL: samples a second", "x", ratios)]


if __name__ == "__main__":
    raise SystemExit(main())
