"""Publishes in a row under load: two replicas, two adapters that take turns, and what users, memory and the clock see.

Each of two adapters is registered twice. Four versions in rotation are more than an alias keeps loaded, so that every
publish copies, stages, probes, flips, drains and retires. Exits with 1 if a request failed, an answer was of another
version than it names, or an engine holds another number of adapters than at first.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "contract"))
from benchmark import Metric, write
from opposites import train_opposites
from peft_adapters import write_adapter
from resident import Resident, StackProcesses
from stack import WEIGHTS, Stack, run_learner

from engines.vllm import build_of
from gateway.client import GatewayClient, Publish
from gateway.demo.client import ask_all, open_client
from gateway.demo.load import BackgroundLoad, Reply, count_by_replica, is_wrong_version, percentile
from gateway.demo.questions import Question, read_questions

BASES = {"vllm": WEIGHTS / "base-fp8", "fake": WEIGHTS / "base"}
NUM_REPLICAS = 2
MAX_LORAS = 4
NUM_REGISTRATIONS = 2
NUM_CANDIDATES = 96
NUM_QUESTIONS = 32
LOAD_PER_S = 4.0
CONCURRENCY = 16
NUM_SAMPLES = 10
WAIT_TIMEOUT_S = 120.0
POLL_S = 0.05
NUM_REPLIES_AROUND = 8
STEPS = ("verify", "copy", "stage", "probe", "flip", "drain", "retire")


@dataclass(frozen=True)
class Scene:
    """A stack in service whose alias names two adapters, live and previous, and what each version answers."""

    stack: Stack
    versions: tuple[str, ...]
    questions: tuple[Question, ...]
    answers: dict[str, tuple[str, ...]]


@dataclass
class Findings:
    """What a run saw. `resident`: after each tenth of the publishes; adapters are counted by replica."""

    held_before: dict[str, int]
    published: list[Publish] = field(default_factory=list)
    call_s: list[float] = field(default_factory=list)
    resident: list[dict[str, Resident]] = field(default_factory=list)
    held_after: dict[str, int] = field(default_factory=dict)
    replies: tuple[Reply, ...] = ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=sorted(BASES), default="vllm", help="the engine")
    parser.add_argument("--publishes", type=int, default=100)
    parser.add_argument("--adapters", nargs=2, type=Path, help="two that answer differently, instead of training them")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the stack is stopped
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        adapters = arguments.adapters or make_adapters(root, arguments.kind)
        return run(root, arguments.kind, adapters, arguments.publishes)


def run(root: Path, kind: str, adapters: Sequence[Path], num_publishes: int) -> int:
    rows = root / "questions.jsonl"
    run_learner("toy", "rows", "--set", "dev", "--num", str(NUM_CANDIDATES), "--out", str(rows))
    settings = {"engines.small.max_loras": MAX_LORAS}
    stack = Stack.make(root, kind, BASES[kind], replicas=NUM_REPLICAS, settings=settings)
    stack.start()
    try:
        stack.wait_in_service()
        scene, findings = asyncio.run(measure(stack, adapters, read_questions(rows), num_publishes))
    finally:
        stack.stop()
    config = {
        **{"engine": name_of(kind), "replicas": NUM_REPLICAS, "max_loras": MAX_LORAS, "publishes": num_publishes},
        **{"versions": len(scene.versions), "adapters": len(adapters), "load_per_s": LOAD_PER_S},
        "questions_that_tell_versions_apart": len(scene.questions),
        "adapters_held_before": findings.held_before,
        "adapters_held_after": findings.held_after,
        "requests_by_replica": count_by_replica(findings.replies),
    }
    command = f"python tests/bench/bench_publish.py --kind {kind} --publishes {num_publishes}"
    failures = find_failures(scene, findings)
    write("publish", command, config, metrics_of(scene, findings))
    print("\n".join(failures) or "every request was answered, by the version that it names")
    return 1 if failures else 0


def name_of(kind: str) -> str:
    return f"vllm {asyncio.run(build_of(sys.executable)).version}" if kind == "vllm" else kind


def make_adapters(root: Path, kind: str) -> Sequence[Path]:
    if kind == "vllm":
        return train_opposites(root)
    return [write_adapter(root / f"adapter-{seed}", BASES[kind], seed=seed) for seed in (1, 2)]


async def measure(
    stack: Stack, adapters: Sequence[Path], candidates: Sequence[Question], num_publishes: int
) -> tuple[Scene, Findings]:
    async with open_client(stack.url) as client:
        with GatewayClient(stack.url) as gateway:
            scene = await set_scene(stack, gateway, adapters, candidates)
            processes = await asyncio.to_thread(StackProcesses.find, stack)
            findings = Findings(count_held(processes))
            async with BackgroundLoad(client, stack.alias, scene.questions, LOAD_PER_S) as load:
                await wait_for_replies(load, NUM_REPLIES_AROUND)
                await publish_in_turn(scene, gateway, processes, findings, num_publishes)
                await wait_for_replies(load, NUM_REPLIES_AROUND)
            findings.replies = tuple(load.replies)
            findings.held_after = count_held(await asyncio.to_thread(StackProcesses.find, stack))
    return scene, findings


async def set_scene(
    stack: Stack, gateway: GatewayClient, adapters: Sequence[Path], candidates: Sequence[Question]
) -> Scene:
    """Registers the versions, publishes the first two, and picks questions that each adapter answers differently."""
    in_turn = list(adapters) * NUM_REGISTRATIONS
    versions = [(await asyncio.to_thread(gateway.register, stack.alias, str(path))).id for path in in_turn]
    for version in versions[: len(adapters)]:
        await asyncio.to_thread(gateway.promote, stack.alias, version)
    names = (f"{stack.engine}@0", *versions[: len(adapters)])
    async with open_client(stack.url) as client:
        asked = [await ask_all(client, name, candidates, CONCURRENCY) for name in names]
    texts = [tuple(answer.text for answer in answers) for answers in asked]
    chosen = [n for n in range(len(candidates)) if texts[1][n] != texts[2][n]][:NUM_QUESTIONS]
    assert chosen, "the two adapters answer every question alike: nothing could tell them apart"
    picked = [tuple(own[n] for n in chosen) for own in texts]
    answers = {names[0]: picked[0]} | dict(zip(versions, picked[1:] * NUM_REGISTRATIONS, strict=True))
    return Scene(stack, tuple(versions), tuple(candidates[n] for n in chosen), answers)


async def publish_in_turn(
    scene: Scene, gateway: GatewayClient, processes: StackProcesses, findings: Findings, num_publishes: int
) -> None:
    in_turn = itertools.islice(itertools.cycle(scene.versions), 2, None)
    every = max(1, num_publishes // NUM_SAMPLES)
    for number, version in zip(range(1, num_publishes + 1), in_turn, strict=False):
        called_s = time.perf_counter()
        published = await asyncio.to_thread(gateway.promote, scene.stack.alias, version)
        findings.call_s.append(time.perf_counter() - called_s)
        findings.published.append(published)
        if number % every == 0:
            findings.resident.append(processes.sample())
            print(f"publish {number}: {version} live after {published.seconds * 1000:.0f} ms", file=sys.stderr)


async def wait_for_replies(load: BackgroundLoad, number: int) -> None:
    """So many more, so that the load is there before the first publish and after the last."""
    wanted = len(load.replies) + number
    async with asyncio.timeout(WAIT_TIMEOUT_S):
        while len(load.replies) < wanted:  # noqa: ASYNC110  the load is the demo's, and tells nobody
            await asyncio.sleep(POLL_S)


def count_held(processes: StackProcesses) -> dict[str, int]:
    return {name: len(adapters) for name, adapters in processes.adapters().items()}


def count_wrong(scene: Scene, findings: Findings) -> int:
    return sum(is_wrong_version(reply, scene.answers) for reply in findings.replies if not reply.error)


def find_failures(scene: Scene, findings: Findings) -> list[str]:
    failures = [f"a request failed: {reply.error}" for reply in findings.replies if reply.error]
    num_wrong = count_wrong(scene, findings)
    if num_wrong:
        failures.append(f"{num_wrong} answers are of another version than they name")
    if findings.held_before != findings.held_after:
        failures.append(f"the engines held {findings.held_before} adapters, and hold {findings.held_after}")
    return failures


def metrics_of(scene: Scene, findings: Findings) -> list[Metric]:
    failed = [reply for reply in findings.replies if reply.error]
    seconds = [published.seconds for published in findings.published]
    ttfts_ms = [reply.ttft_s * 1000 for reply in findings.replies if reply.ttft_s is not None and not reply.error]
    steps = {step: [one.steps[step] for one in findings.published if step in one.steps] for step in STEPS}
    return [
        Metric("requests", "requests", [len(findings.replies)]),
        Metric("failed", "requests", [len(failed)]),
        Metric("of another version than named", "answers", [count_wrong(scene, findings)]),
        Metric("adapters held by an engine, before", "adapters", list(findings.held_before.values())),
        Metric("adapters held by an engine, after", "adapters", list(findings.held_after.values())),
        Metric("call to flip", "s", seconds),
        Metric("call to flip, p95", "s", [percentile(seconds, 0.95)]),
        Metric("call to answer", "s", findings.call_s),
        *(Metric(f"step {step}", "s", values) for step, values in steps.items() if values),
        Metric("first token of the load", "ms", ttfts_ms),
        Metric("first token of the load, p99", "ms", [percentile(ttfts_ms, 0.99)]),
        *memory_metrics(findings.resident),
    ]


def memory_metrics(samples: Sequence[dict[str, Resident]]) -> list[Metric]:
    """All samples of each process, and the last over the second: the first fifth warms up."""
    metrics = []
    for name in samples[0]:
        resident = [sample[name].rss_mib for sample in samples]
        private = [sample[name].private_mib for sample in samples]
        for label, values in ((f"resident, {name}", resident), (f"resident and private, {name}", private)):
            ratio = values[-1] / values[min(1, len(values) - 1)]
            metrics += [Metric(label, "MiB", values), Metric(f"{label}, at the end / at a fifth", "x", [ratio])]
    return metrics


if __name__ == "__main__":
    sys.exit(main())
