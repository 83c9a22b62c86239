"""GRPO on real vLLM learns what it is rewarded for, and samples at every push from what was learned.

The accuracies are on the held-out questions of the test split.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
from benchmark import Metric, write
from grpo_run import Run, run_job
from stack import WEIGHTS, run_learner

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1500)]
MAX_FP8_MISMATCH = 0.005
MAX_MISMATCH = 0.003
SFT = """
method = "sft"
name = "sft"
model = "{weights}/base"
data = "{data}"
learning_rate = 2e-3
batch_size = 16
max_steps = 30
save_every = 30
"""
GRPO = """
method = "grpo"
model = "{weights}/base"
data = "{data}"
save_every = 100
[[rewards]]
{reward}
[rollout]
ray_address = ""
max_running = 16
max_new_tokens = 8
[rollout.own]
model = "{weights}/{engine}"
kind = "vllm"
max_loras = 5
reserved_for_rollout = 3
"""
EXACT = 'name = "exact_match"'
SHORT = 'name = "length"\noptions = { kind = "shorter", tokens = 8 }'


def rows(root: Path, which: str, num: int, seed: int) -> Path:
    out = root / f"{which}-{seed}.jsonl"
    run_learner("toy", "rows", "--set", which, "--num", str(num), "--seed", str(seed), "--out", str(out))
    return out


def accuracy(adapter: Path) -> tuple[float, float]:
    """In all, and on negated questions."""
    base = str(WEIGHTS / "base")
    printed = run_learner("toy", "eval", "--model", base, "--adapter", str(adapter), "--set", "held-out", "--json")
    scored = json.loads(printed)
    return scored["overall"], scored["by_kind"]["negated"]


def train(root: Path, name: str, data: Path, reward: str, *settings: str, engine: str = "base-fp8") -> Run:
    job = root / f"{name}.toml"
    job.write_text(GRPO.format(weights=WEIGHTS, data=data, reward=reward, engine=engine))
    return run_job(job, root, name, settings, {})


def test_from_an_sft_adapter_grpo_brings_what_sft_left(tmp_path: Path) -> None:
    """Accuracy at least 0.04 higher, on negated questions at least 0.2."""
    job = tmp_path / "sft.toml"
    job.write_text(SFT.format(weights=WEIGHTS, data=rows(tmp_path, "corrections", 400, seed=3)))
    run_learner("sft", "--config", str(job), "--set", f"root={tmp_path}/jobs")
    parent = tmp_path / "jobs" / "sft" / "checkpoints" / "step-30"
    settings = (f"parent={parent}", "learning_rate=5e-4", "max_steps=32", "prompts_per_step=32", "group_size=4")
    run = train(tmp_path, "from-sft", rows(tmp_path, "doubtful", 512, seed=7), EXACT, *settings)
    before, after = accuracy(parent), accuracy(tmp_path / "jobs" / "from-sft" / "checkpoints" / "step-32")
    record("grpo-from-sft", run, {"accuracy": (before[0], after[0]), "negated": (before[1], after[1])})
    assert max(run.push_mismatches) <= MAX_FP8_MISMATCH
    assert after[0] >= before[0] + 0.04
    assert after[1] >= before[1] + 0.2


def test_from_the_base_the_mean_reward_rises_above_88_percent(tmp_path: Path) -> None:
    """Ten steps see each row once."""
    settings = ("learning_rate=1e-3", "max_steps=80", "prompts_per_step=32", "group_size=4")
    run = train(tmp_path, "from-base", rows(tmp_path, "corrections", 320, seed=7), EXACT, *settings, engine="base")
    first, last = mean_rewards(run, 10)
    record("grpo-from-base", run, {"mean reward": (first, last)}, engine="base")
    assert max(run.push_mismatches) <= MAX_MISMATCH
    assert first < 0.8
    assert last > 0.88


def test_rewarded_for_being_short_answers_become_short(tmp_path: Path) -> None:
    """An adapter that never reached the engine could not do it: the answers are the engine's. Four steps see each row
    once."""
    settings = ("learning_rate=1e-3", "max_steps=40", "prompts_per_step=16", "group_size=8")
    data = rows(tmp_path, "corrections", 64, seed=7)
    run = train(tmp_path, "short", data, SHORT, *settings, engine="base")
    first, last = mean_rewards(run, 4)
    record("grpo-short", run, {"mean reward": (first, last)}, engine="base")
    assert max(run.push_mismatches) <= MAX_MISMATCH
    assert last > first + 0.05


def mean_rewards(run: Run, num_steps: int) -> tuple[float, float]:
    """Of the first steps, and of the last."""
    rewards = run.values("reward")
    return fmean(rewards[:num_steps]), fmean(rewards[-num_steps:])


def record(name: str, run: Run, before_and_after: dict[str, tuple[float, float]], engine: str = "base-fp8") -> None:
    metrics = [Metric(f"{what}: before, after", "share", values) for what, values in before_and_after.items()]
    metrics += [
        Metric("reward", "reward", run.values("reward")),
        Metric("worst push mismatch", "log-probability", [max(run.push_mismatches)]),
        Metric("staleness", "steps", run.values("staleness_mean")),
        Metric("time", "s", [run.at_s[-1]]),
    ]
    config = {"engine": f"vllm, {engine}, one"}
    write(name, "pytest -m slow tests/e2e/test_grpo_learns.py", config, metrics)
