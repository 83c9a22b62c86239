"""Publishes while streams are open, on a published size of Qwen3-VL with random weights: how long, and who feels it.

Through the whole gateway: two adapters of every language linear, each registered twice, take turns, so that every
publish verifies, looks for the copy, stages, probes, flips, drains and retires. Windows of 5 s around a publish and
without one alternate. Exits with 1 if a request failed or was answered by another version than it names.

`--model small` is the small base, for a look without a GPU; `--kind fake` an engine without a model.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from benchmark import ROOT, Metric, write
from open_streams import Asker, OpenStreams, Stream
from stack import WEIGHTS, Setting, Stack, run_learner
from swap_picture import Gap, draw

from gateway.client import GatewayClient, Publish
from gateway.demo.load import percentile
from gateway.demo.questions import Question, read_questions

SMALL = "small"
MAX_LORAS = 4
NUM_REGISTRATIONS = 2
NUM_QUESTIONS = 64
NUM_JUDGED_TOKENS = 16
NUM_SCOUTS = 4
WINDOW_S = 5.0
WARM_S = 5.0
START_TIMEOUT_S = 400.0
STEPS = ("verify", "copy", "stage", "probe", "flip", "drain", "retire")
ON_CARD: dict[str, Setting] = {
    "engines.small.dtype": "bfloat16",
    "engines.small.max_model_len": 1024,
    "engines.small.start_timeout_s": START_TIMEOUT_S,
    "engines.small.args.gpu-memory-utilization": 0.6,
    "engines.small.args.max-cudagraph-capture-size": 128,
}


@dataclass(frozen=True)
class Made:
    """The model to serve, adapters of it, and the questions to ask."""

    model: Path
    adapters: tuple[Path, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Swap:
    """One publish: when it was called, monotonic, and what the gateway said."""

    called_s: float
    publish: Publish


@dataclass(frozen=True)
class Findings:
    """`quiet_s`: the middles of the windows without a publish. `texts`: version -> its greedy answers' beginnings."""

    swaps: tuple[Swap, ...]
    quiet_s: tuple[float, ...]
    answers: tuple[Stream, ...]
    texts: dict[str, tuple[str, ...]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", help="of the results' file; by default swap-MODEL")
    parser.add_argument("--model", choices=(SMALL, "narrow", "2b"), default=SMALL)
    parser.add_argument("--kind", choices=("vllm", "fake"), default="vllm", help="the engine")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--streams", type=int, help="by default 64, on a CPU 8")
    parser.add_argument("--tokens", type=int, help="of an answer; by default 256, on a CPU 32")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--swaps", type=int, help="by default 8, on a CPU 3")
    parser.add_argument("--say-times", action="store_true", help="prints what vLLM's plugin says of loads and probes")
    arguments = parser.parse_args()
    on_card = arguments.device == "cuda"
    arguments.name = arguments.name or f"swap-{arguments.model}"
    arguments.streams = arguments.streams or (64 if on_card else 8)
    arguments.tokens = arguments.tokens or (256 if on_card else 32)
    arguments.swaps = arguments.swaps or (8 if on_card else 3)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the stack is stopped
    with tempfile.TemporaryDirectory() as directory:
        return run(Path(directory), arguments)


def run(root: Path, arguments: argparse.Namespace) -> int:
    made = make(root, arguments)
    settings: dict[str, Setting] = {"engines.small.max_loras": MAX_LORAS, "engines.small.max_lora_rank": arguments.rank}
    settings |= ON_CARD if arguments.device == "cuda" else {}
    settings |= {"engines.small.args.tokens-per-s": 50} if arguments.kind == "fake" else {}
    settings |= {"engines.small.env.TANDEM_PLUGIN_LOG_LEVEL": "INFO"} if arguments.say_times else {}
    stack = Stack.make(root, arguments.kind, made.model, settings=settings)
    stack.start()
    try:
        stack.wait_in_service(START_TIMEOUT_S)
        findings = asyncio.run(measure(stack, made, arguments))
    finally:
        stack.stop()
    if arguments.say_times:
        print(*times_said(stack), sep="\n")
    report(findings, arguments)
    failures = find_failures(findings)
    print("\n".join(failures[:5]) or "every request was answered, by the version that it names")
    return 1 if failures else 0


def times_said(stack: Stack) -> list[str]:
    """Lines of the engines' logs."""
    lines = (
        line for path in sorted(stack.data.rglob("*.log")) for line in path.read_text(errors="replace").splitlines()
    )
    return [line for line in lines if line.startswith("INFO:tandem_vllm_plugin:")]


def make(root: Path, arguments: argparse.Namespace) -> Made:
    rows, questions = root / "rows.jsonl", root / "questions.jsonl"
    run_learner("toy", "rows", "--set", "corrections", "--num", "200", "--out", str(rows))
    run_learner("toy", "rows", "--set", "dev", "--num", str(NUM_QUESTIONS), "--out", str(questions))
    is_small = arguments.model == SMALL
    model = WEIGHTS / "base" if is_small else root / "model"
    adapters = tuple(root / f"adapter-{number}" for number in (1, 2))
    words = ["--model", str(model), "--like", str(WEIGHTS / "base"), "--rows", str(rows)]
    words += ["--adapters", *map(str, adapters), "--rank", str(arguments.rank), "--device", arguments.device]
    words += [] if is_small else ["--size", arguments.model]
    script = ROOT / "tests" / "support" / "random_model.py"
    subprocess.run([sys.executable, str(script), *words], cwd=ROOT, timeout=START_TIMEOUT_S, check=True)
    return Made(model, adapters, read_questions(questions))


async def measure(stack: Stack, made: Made, arguments: argparse.Namespace) -> Findings:
    async with Asker(stack.url, made.questions) as asker:
        with GatewayClient(stack.url) as gateway:
            versions = await register(stack, gateway, made.adapters)
            texts = await learn_texts(asker, stack, versions, len(made.adapters))
            streams = OpenStreams(
                asker,
                stack.alias,
                len(made.questions),
                num_clients=arguments.streams,
                num_scouts=NUM_SCOUTS,
                num_tokens=arguments.tokens,
            )
            gc.disable()  # a collection of ours would be a gap that the gateway has not made
            async with streams:
                await asyncio.sleep(WARM_S)
                swaps, quiet_s = await swap_in_turn(stack, gateway, versions, arguments.swaps)
    return Findings(tuple(swaps), tuple(quiet_s), tuple(streams.answers), texts)


async def register(stack: Stack, gateway: GatewayClient, adapters: Sequence[Path]) -> tuple[str, ...]:
    """All versions; the first of each adapter has been published."""
    in_turn = list(adapters) * NUM_REGISTRATIONS
    versions = [(await asyncio.to_thread(gateway.register, stack.alias, str(path))).id for path in in_turn]
    for version in versions[: len(adapters)]:
        await asyncio.to_thread(gateway.promote, stack.alias, version)
    return tuple(versions)


async def learn_texts(
    asker: Asker, stack: Stack, versions: Sequence[str], num_adapters: int
) -> dict[str, tuple[str, ...]]:
    """How each version begins its answers; those of one adapter do alike."""
    names = (f"{stack.engine}@0", *versions[:num_adapters])
    asked = [await asker.ask_all(name, NUM_JUDGED_TOKENS) for name in names]
    assert not any(one.error for own in asked for one in own), "a version does not answer in quiet"
    base, *picked = [tuple(one.text for one in own) for own in asked]
    return {names[0]: base} | dict(zip(versions, picked * NUM_REGISTRATIONS, strict=True))


async def swap_in_turn(
    stack: Stack, gateway: GatewayClient, versions: Sequence[str], num_swaps: int
) -> tuple[list[Swap], list[float]]:
    """Windows without a publish and with one, in turn."""
    swaps, quiet_s = [], []
    in_turn = itertools.islice(itertools.cycle(versions), len(versions) // NUM_REGISTRATIONS, None)
    for version in itertools.islice(in_turn, num_swaps):
        quiet_s.append(time.monotonic() + WINDOW_S / 2)
        await asyncio.sleep(WINDOW_S + WINDOW_S / 2)
        called_s = time.monotonic()
        publish = await asyncio.to_thread(gateway.promote, stack.alias, version)
        swaps.append(Swap(called_s, publish))
        print(f"{version} live after {publish.seconds * 1000:.0f} ms", file=sys.stderr, flush=True)
        await asyncio.sleep(WINDOW_S / 2)
    return swaps, quiet_s


def report(findings: Findings, arguments: argparse.Namespace) -> None:
    command = f"python tests/bench/bench_swap.py {' '.join(sys.argv[1:])}".strip()
    config = vars(arguments) | {"window_s": WINDOW_S, "scouts": NUM_SCOUTS, "questions": NUM_QUESTIONS}
    write(arguments.name, command, config, metrics_of(findings))
    swaps = [gaps_around(findings.answers, swap.called_s) for swap in findings.swaps]
    quiet = [gaps_around(findings.answers, middle_s) for middle_s in findings.quiet_s]
    flips_s = [swap.publish.seconds for swap in findings.swaps]
    draw(swaps, quiet, flips_s, ROOT / "bench-results" / f"{arguments.name}.png")


def metrics_of(findings: Findings) -> list[Metric]:
    """Differences are of each publish's window and the one without before it."""
    answers, swaps = findings.answers, findings.swaps
    longest = [1000 * longest_gap_s(answers, swap.called_s) for swap in swaps]
    longest_quiet = [1000 * longest_gap_s(answers, middle_s) for middle_s in findings.quiet_s]
    first = [1000 * p99_ttft_s(answers, swap.called_s) for swap in swaps]
    first_quiet = [1000 * p99_ttft_s(answers, middle_s) for middle_s in findings.quiet_s]
    steps = {step: [one.publish.steps[step] for one in swaps if step in one.publish.steps] for step in STEPS}
    return [
        Metric("requests", "requests", [len(answers)]),
        Metric("failed", "requests", [sum(bool(one.error) for one in answers)]),
        Metric("of another version than named", "answers", [len(wrong_answers(findings))]),
        Metric("begun as their version's in quiet", "share", [share_judged(findings)]),
        Metric("tokens a second", "1/s", [tokens_per_s(answers, middle_s) for middle_s in findings.quiet_s]),
        Metric("call to flip", "s", [swap.publish.seconds for swap in swaps]),
        Metric("call to the new version's first token", "s", [first_token_s(answers, swap) for swap in swaps]),
        *(Metric(f"step {step}", "s", values) for step, values in steps.items() if values),
        Metric("longest gap, around a publish", "ms", longest),
        Metric("longest gap, without", "ms", longest_quiet),
        Metric("longest gap, added", "ms", [a - b for a, b in zip(longest, longest_quiet, strict=True)]),
        Metric("first token p99, around a publish", "ms", first),
        Metric("first token p99, without", "ms", first_quiet),
        Metric("first token p99, added", "ms", [a - b for a, b in zip(first, first_quiet, strict=True)]),
    ]


def first_token_s(answers: Sequence[Stream], swap: Swap) -> float:
    """After the call, of whoever was first to be answered by the version."""
    own = [one for one in answers if one.version == swap.publish.version and one.started_s >= swap.called_s]
    return min(one.events_s[0] for one in own if one.events_s) - swap.called_s


def gaps_around(answers: Sequence[Stream], middle_s: float) -> list[Gap]:
    """Of all gaps that ended in the window: (when, from its middle; how long)."""
    gaps = (gap for one in answers for gap in one.gaps)
    return [(at_s - middle_s, gap_s) for at_s, gap_s in gaps if abs(at_s - middle_s) <= WINDOW_S / 2]


def longest_gap_s(answers: Sequence[Stream], middle_s: float) -> float:
    return max(gap_s for _, gap_s in gaps_around(answers, middle_s))


def p99_ttft_s(answers: Sequence[Stream], middle_s: float) -> float:
    """Of the requests that began in the window."""
    begun = (one for one in answers if abs(one.started_s - middle_s) <= WINDOW_S / 2)
    return percentile([one.ttft_s for one in begun if one.events_s], 0.99)


def tokens_per_s(answers: Sequence[Stream], middle_s: float) -> float:
    return len(gaps_around(answers, middle_s)) / WINDOW_S


def find_failures(findings: Findings) -> list[str]:
    failures = [f"a request failed: {one.error}" for one in findings.answers if one.error]
    return failures + wrong_answers(findings)


def wrong_answers(findings: Findings) -> list[str]:
    """Answers whose header and body differ, or that begin as another version's rather than as that named.

    Only how they begin is compared: in bfloat16 an answer depends on what it was computed beside, sooner or later.
    """
    wrong = []
    for one in findings.answers:
        if one.error:
            continue
        if one.version != one.named or one.version not in findings.texts:
            wrong.append(f"the header says '{one.version}', the body '{one.named}'")
        elif likeness(findings, one, one.version) < max(likeness(findings, one, name) for name in findings.texts):
            wrong.append(f"{one.version} said {one.text[:60]!r}, not {findings.texts[one.version][one.question]!r}")
    return wrong


def likeness(findings: Findings, answer: Stream, version: str) -> int:
    """How many words the answer and that version's have in common from the beginning."""
    pairs = zip(answer.text.split(), findings.texts[version][answer.question].split(), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def share_judged(findings: Findings) -> float:
    """Of all answers, those that a comparison says something of."""
    whole = [one for one in findings.answers if not one.error and one.version in findings.texts]
    return sum(likeness(findings, one, one.version) > 0 for one in whole) / len(whole)


if __name__ == "__main__":
    sys.exit(main())
