"""GRPO on real vLLM: what is learned reaches the engine that it samples from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from evidence import Supports
from stack import ROOT, run_learner
from support_rows import Aspect
from toys import TOYS

from learners.events import Event, consumed_rows, read_events

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
RUN_TIMEOUT_S = 840
MAX_MISMATCH = 0.003
JOB = """
method = "grpo"
name = "{name}"
model = "{model}"
data = "{data}"
prompts_per_step = 16
group_size = 8
{settings}
[rollout]
ray_address = ""
max_running = 16
max_new_tokens = 8
[rollout.own]
model = "{model}"
kind = "vllm"
max_loras = 5
reserved_for_rollout = 3
"""


def make_rows(root: Path, name: str, num: int, seed: int) -> Path:
    out = root / f"{name}.jsonl"
    run_learner("toy", "rows", "--set", "corrections", "--num", str(num), "--seed", str(seed), "--out", str(out))
    return out


def run_grpo(root: Path, name: str, model: Path, *settings: str, num_rows: int = 640) -> tuple[Path, list[Event]]:
    """The job's directory and its events; its pushes agree with the learner."""
    job = root / f"{name}.toml"
    data = make_rows(root, f"{name}-prompts", num_rows, seed=7)
    job.write_text(JOB.format(name=name, model=model, data=data, settings="\n".join(settings)))
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
    assert worst <= MAX_MISMATCH
    return root / "jobs" / name, events


@pytest.mark.parametrize("family", TOYS)
def test_what_is_sampled_from_is_what_was_learned_at_every_push(
    tmp_path: Path, family: str, supports: Supports
) -> None:
    """`run_grpo` holds each push to the limit; here also: that there was something to tell apart."""
    _, events = run_grpo(
        tmp_path,
        "pushes",
        TOYS[family].base,
        "learning_rate = 2e-3",
        "max_steps = 6",
        "save_every = 6",
        '[[rewards]]\nname = "exact_match"',
        num_rows=96,
    )
    supports(tmp_path / "pushes.toml", Aspect.GRPO)
    pushes = [event for event in events if event.type == "push"]
    assert [event.data["version"] for event in pushes] == [f"pushes.1/step@{number}" for number in range(1, 8)]
    assert pushes[-1].data["effect"] > MAX_MISMATCH
    consumed = consumed_rows(tmp_path / "jobs" / "pushes" / "events.jsonl")
    assert sorted(map(int, consumed)) == list(range(1, 97))
