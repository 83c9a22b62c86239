"""GRPO with engine and learner on one GPU, in bfloat16, with CUDA graphs: what is sampled from is what was learned."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence import Supports
from grpo_run import run_job
from stack import run_learner
from support_rows import Aspect
from toys import TOYS, Toy

from learners.events import consumed_rows, read_events

pytestmark = [pytest.mark.gpu, pytest.mark.vllm, pytest.mark.ray, pytest.mark.timeout(500)]
NUM_STEPS, PROMPTS_PER_STEP = 6, 16
MAX_MISMATCH = 0.02
"""The default at which a job fails."""
JOB = f"""
method = "grpo"
model = "{{base}}"
data = "{{data}}"
device = "cuda"
learning_rate = 2e-3
max_steps = {NUM_STEPS}
save_every = {NUM_STEPS}
prompts_per_step = {PROMPTS_PER_STEP}
group_size = 8
[[rewards]]
name = "exact_match"
[rollout]
ray_address = ""
max_new_tokens = 8
[rollout.own]
model = "{{engine}}"
max_loras = 5
reserved_for_rollout = 3
[rollout.own.args]
gpu-memory-utilization = 0.2
kv-cache-memory-bytes = {2 << 30}
max-cudagraph-capture-size = 128
"""


@pytest.mark.parametrize("scheme", ["none", "fp8", "w4a16"])
@pytest.mark.parametrize("family", list(TOYS))
def test_each_push_agrees_and_each_row_is_learned_from_once(
    tmp_path: Path, family: str, scheme: str, supports: Supports
) -> None:
    engine = serving(TOYS[family], scheme, tmp_path / "copy")
    data, job = tmp_path / "rows.jsonl", tmp_path / "job.toml"
    num_rows = str(NUM_STEPS * PROMPTS_PER_STEP)
    run_learner("toy", "rows", "--set", "corrections", "--num", num_rows, "--seed", "7", "--out", str(data))
    job.write_text(JOB.format(data=data, base=TOYS[family].base, engine=engine))
    run_job(job, tmp_path, "on-gpu", (), {})
    supports(job, Aspect.GRPO)
    events = tmp_path / "jobs" / "on-gpu" / "events.jsonl"
    pushes = [event for event in read_events(events) if event.type == "push"]
    assert len(pushes) == NUM_STEPS + 1
    assert max(event.data["push_mismatch"] for event in pushes) <= MAX_MISMATCH
    assert pushes[-1].data["effect"] > pushes[-1].data["push_mismatch"]
    assert sorted(map(int, consumed_rows(events))) == list(range(1, NUM_STEPS * PROMPTS_PER_STEP + 1))


def serving(toy: Toy, scheme: str, copy: Path) -> Path:
    """The model of the engine."""
    if scheme == "none":
        return toy.base
    from learners.toy.quantize import quantize
    from learners.toy.schemes import SCHEMES

    quantize(toy.base, copy, SCHEMES[scheme])
    return copy
