"""The whole loop with SGLang serving: engine, SFT and GRPO share one GPU, and users ask all the while.

`TANDEM_LOOP_KIND=vllm` walks it with vLLM in SGLang's place, on a CPU too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sglang_machine
from evidence import Supports
from grpo_run import run_job
from load import Load, errors
from openai import OpenAI
from oracle import LearnedOracle, weights_by_version
from stack import WEIGHTS, Setting, Stack, run_learner, train_sft
from subjects import settings as engine_settings
from support_rows import Aspect

from gateway import ray_daemon
from gateway.client import GatewayClient, Publish
from gateway.demo.client import ask_all, open_client
from gateway.demo.evaluate import Evaluation, evaluate
from gateway.demo.questions import Question, read_questions
from gateway.jobs import read_job
from learners.events import read_events

KIND = os.environ.get("TANDEM_LOOP_KIND", "sglang")
MARKS = {"sglang": [pytest.mark.gpu], "vllm": [pytest.mark.vllm, pytest.mark.slow]}
pytestmark = [*MARKS[KIND], pytest.mark.ray, pytest.mark.timeout(420)]
BASE = "small@0"
NUM_ROWS, SFT_STEPS = 800, 100
NUM_HELD_OUT, CONCURRENCY = 100, 16
NUM_LOAD_QUESTIONS, NUM_CLIENTS = 8, 2
MIN_GAIN = 0.15
MIN_SAME_SHARE = 0.97
"""Of the base's answers before and after: batches of other sizes may turn a near tie."""
GRPO_STEPS, PROMPTS_PER_STEP = 4, 16
MAX_MISMATCH = 0.1
"""As a guest on a GPU: both sides compute in bfloat16."""
GRPO_JOB = f"""
method = "grpo"
model = "{WEIGHTS}/base"
data = "{{data}}"
parent = "{{parent}}"
max_steps = {GRPO_STEPS}
save_every = {GRPO_STEPS}
prompts_per_step = {PROMPTS_PER_STEP}
group_size = 4
max_mismatch = {MAX_MISMATCH}
[[rewards]]
name = "exact_match"
[rollout]
engine = "small"
max_new_tokens = 8
users_factor = 1e6
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    slots: dict[str, Setting] = {"engines.small.max_loras": 6, "engines.small.reserved_for_rollout": 3}
    settings = slots | (on_sglang() if KIND == "sglang" else on_vllm())
    stack = Stack.make(tmp_path_factory.mktemp("loop"), KIND, WEIGHTS / "base", settings=settings)
    try:
        stack.start()
        stack.wait_in_service()
        yield stack
    finally:
        stack.stop()


def on_sglang() -> dict[str, Setting]:
    args, env = sglang_machine.arguments(), sglang_machine.environment(sglang_machine.site())
    settings: dict[str, Setting] = {"engines.small.dtype": "bfloat16"}
    settings |= {f"engines.small.args.{key}": value for key, value in args.items()}
    return settings | {f"engines.small.env.{key}": value for key, value in env.items()}


def on_vllm() -> dict[str, Setting]:
    args = engine_settings(KIND).get("args", {})
    return {f"engines.small.args.{key}": value for key, value in args.items()}


def test_what_sft_and_then_grpo_learn_is_served_and_taken_back_without_a_failed_request(
    stack: Stack, tmp_path: Path, supports: Supports
) -> None:
    for aspect in (Aspect.SWAP, Aspect.SFT, Aspect.GRPO):
        supports(stack.config, aspect)
    held_out = read_questions(make_rows(tmp_path, "held-out", NUM_HELD_OUT))
    with loaded(stack, held_out[:NUM_LOAD_QUESTIONS]) as load:
        base = accuracy(stack, held_out)
        assert base.version == BASE
        check_stream(stack, held_out[0], base.answers[0].text)

        trained = train_sft(tmp_path, num_rows=NUM_ROWS, max_steps=SFT_STEPS)
        sft = publish(stack, trained)
        assert gain(stack, held_out, sft.version, base) >= MIN_GAIN

        check_rolled_back(stack, held_out, base)
        with GatewayClient(stack.url) as gateway:
            assert "differences" in gateway.promote(stack.alias, sft.version).proof
        assert gain(stack, held_out, sft.version, base) >= MIN_GAIN

        grpo = publish(stack, train_grpo(stack, tmp_path, trained))
        assert gain(stack, held_out, grpo.version, base) >= MIN_GAIN
    check_load(stack, load, {BASE, sft.version, grpo.version})


@contextmanager
def loaded(stack: Stack, questions: tuple[Question, ...]) -> Iterator[Load]:
    """A load that lasts until the block ends; each client is answered at least twice before that."""
    load = Load(stack, LearnedOracle([question.messages for question in questions]), NUM_CLIENTS).start()
    try:
        yield load
        load.wait_answers(2)
    finally:
        load.stop()


def accuracy(stack: Stack, questions: tuple[Question, ...]) -> Evaluation:
    async def ask() -> Evaluation:
        async with open_client(stack.url) as client:
            return evaluate(await ask_all(client, stack.alias, questions, CONCURRENCY))

    found = asyncio.run(ask())
    print(f"{found.version}: {found.accuracy:.3f} {dict(found.by_kind)}", flush=True)
    return found


def gain(stack: Stack, questions: tuple[Question, ...], version: str, base: Evaluation) -> float:
    """How much more is right than of the base; an assertion unless it is `version` that answers."""
    found = accuracy(stack, questions)
    assert found.version == version
    return found.accuracy - base.accuracy


def check_stream(stack: Stack, question: Question, expected: str) -> None:
    with OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        messages: Any = question.messages
        stream = client.chat.completions.create(
            model=stack.alias, messages=messages, temperature=0, max_tokens=8, stream=True
        )
        parts = list(stream)
    assert {part.model for part in parts} == {BASE}
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == expected


def publish(stack: Stack, checkpoint: Path) -> Publish:
    with GatewayClient(stack.url) as gateway:
        published = gateway.promote(stack.alias, gateway.register(stack.alias, str(checkpoint)).id)
    print(f"{published.version} after {published.seconds:.2f} s: {published.proof}; {published.steps}", flush=True)
    assert "differences" in published.proof
    assert published.replicas == ["small/0"]
    return published


def check_rolled_back(stack: Stack, questions: tuple[Question, ...], base: Evaluation) -> None:
    with GatewayClient(stack.url) as gateway:
        assert gateway.rollback(stack.alias).version == BASE
    again = accuracy(stack, questions)
    assert again.version == BASE
    same = [before.text == after.text for before, after in zip(base.answers, again.answers, strict=True)]
    assert sum(same) >= MIN_SAME_SHARE * len(same)


def train_grpo(stack: Stack, root: Path, parent: Path) -> Path:
    """The best checkpoint of a short job whose samples come from the serving replica."""
    job, daemon = root / "grpo.toml", ray_daemon.find(stack.data / "run")
    assert daemon is not None, "the stack's Ray does not run"
    data = make_rows(root, "doubtful", GRPO_STEPS * PROMPTS_PER_STEP, seed=7)
    job.write_text(GRPO_JOB.format(data=data, parent=parent))
    run = run_job(job, root, "guest", (), daemon.environment())
    print(f"rewards {run.values('reward')}, mismatches {run.push_mismatches}", flush=True)
    assert len(run.steps) == GRPO_STEPS
    pushes = [event for event in read_events(root / "jobs" / "guest" / "events.jsonl") if event.type == "push"]
    assert pushes[-1].data["effect"] > pushes[-1].data["push_mismatch"]
    checkpoint = read_job(root / "jobs" / "guest").checkpoint
    assert checkpoint is not None
    return checkpoint


def check_load(stack: Stack, load: Load, answered_by: set[str]) -> None:
    outcomes = load.since()
    print(f"{len(outcomes)} requests of the load", flush=True)
    assert not [one.short() for one in errors(outcomes)]
    assert all(one.model == one.version for one in outcomes)
    versions = {one.version for one in outcomes}
    assert answered_by <= versions <= set(weights_by_version(stack))


def make_rows(root: Path, name: str, num: int, seed: int = 0) -> Path:
    out = root / f"{name}.jsonl"
    run_learner("toy", "rows", "--set", name, "--num", str(num), "--seed", str(seed), "--out", str(out))
    return out
