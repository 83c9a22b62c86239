"""GRPO on real vLLM: what is learned reaches the engine, and answers get better."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest
from benchmark import Metric, write
from stack import ROOT, WEIGHTS, run_learner

from learners.events import Event, read_events

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
RUN_TIMEOUT_S = 840
MAX_MISMATCH = {"base": 0.003, "base-fp8": 0.005}
JOB = """
method = "grpo"
name = "{name}"
model = "{weights}/base"
data = "{data}"
prompts_per_step = 16
group_size = 8
{settings}
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
SFT = """
name = "sft"
model = "{weights}/base"
data = "{data}"
learning_rate = 2e-3
max_steps = 25
save_every = 25
"""


def make_rows(root: Path, name: str, num: int, seed: int) -> Path:
    out = root / f"{name}.jsonl"
    run_learner("toy", "rows", "--set", "corrections", "--num", str(num), "--seed", str(seed), "--out", str(out))
    return out


def run_grpo(root: Path, name: str, engine: str, *settings: str, num_rows: int = 640) -> tuple[Path, list[Event]]:
    """The job's directory and its events; its pushes agree with the learner."""
    job = root / f"{name}.toml"
    data = make_rows(root, f"{name}-prompts", num_rows, seed=7)
    job.write_text(JOB.format(name=name, weights=WEIGHTS, data=data, engine=engine, settings="\n".join(settings)))
    done = subprocess.run(
        [sys.executable, "-m", "learners", "grpo", "--config", str(job)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TANDEM_JOBS__ROOT": str(root / "jobs")},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-4000:]}"
    events = list(read_events(root / "jobs" / name / "events.jsonl"))
    worst = max(event.data["push_mismatch"] for event in events if event.type == "push")
    assert worst <= MAX_MISMATCH[engine]
    return root / "jobs" / name, events


def rewards_of(events: Sequence[Event]) -> list[float]:
    return [event.data["reward"] for event in events if event.type == "step"]


def accuracy(adapter: Path) -> tuple[float, float]:
    """In all, and of negated questions, on rows that nothing is trained on."""
    score = json.loads(run_learner("toy", "eval", "--model", f"{WEIGHTS}/base", "--adapter", str(adapter), "--json"))
    return score["overall"], score["by_kind"]["negated"]


def test_grpo_goes_on_from_sft_and_learns_what_sft_did_not(tmp_path: Path) -> None:
    sft = tmp_path / "sft.toml"
    sft.write_text(SFT.format(weights=WEIGHTS, data=make_rows(tmp_path, "corrections", 400, seed=0)))
    output = f'output="{tmp_path}/jobs/sft"'
    parent = json.loads(run_learner("sft", "--config", str(sft), "--set", output, "--json"))["best_checkpoint"]
    parent_path = tmp_path / "jobs" / "sft" / parent
    job, events = run_grpo(
        tmp_path,
        "grpo",
        "base-fp8",
        f'parent = "{parent_path}"',
        "learning_rate = 5e-4",
        "max_steps = 40",
        "save_every = 20",
        '[[rewards]]\nname = "exact_match"',
    )
    before, after = accuracy(parent_path), accuracy(job / "checkpoints" / "step-40")
    rewards = rewards_of(events)
    pushes = [event.data["push_mismatch"] for event in events if event.type == "push"]
    write(
        "grpo-sft",
        "pytest -m slow tests/e2e/test_grpo.py",
        {"steps": len(rewards), "engine": "vllm, FP8, one", "max_staleness": 1},
        [
            Metric("accuracy before", "share", [before[0]]),
            Metric("accuracy after", "share", [after[0]]),
            Metric("negated before", "share", [before[1]]),
            Metric("negated after", "share", [after[1]]),
            Metric("reward", "reward", rewards),
            Metric("push mismatch", "nats", pushes),
        ],
    )
    assert after[0] >= before[0] + 0.04
    assert after[1] >= before[1] + 0.2


def test_a_reward_for_short_answers_makes_them_short(tmp_path: Path) -> None:
    """An adapter that never reached the engine could not do it."""
    _, events = run_grpo(
        tmp_path,
        "short",
        "base",
        "learning_rate = 2e-3",
        "max_steps = 15",
        "save_every = 15",
        '[[rewards]]\nname = "length"\noptions = {kind = "shorter", tokens = 6}',
        num_rows=240,
    )
    rewards = rewards_of(events)
    lengths = [event.data["num_tokens"] for event in events if event.type == "step"]
    assert fmean(rewards[-3:]) > fmean(rewards[:3]) + 0.1
    assert fmean(lengths[-3:]) < fmean(lengths[:3]) - 0.5
