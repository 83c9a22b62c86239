"""To another base by a rolling swap and back in place, on two replicas of vLLM in FP8 under load."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from benchmark import Metric, write
from load import Outcome, errors, wrong_answers
from oracle import BASE, LearnedOracle, weights_by_version
from other_model import LOUD_NOISE, write_other_fp8
from peft_adapters import write_adapter
from pictures import picture_questions
from releasing import Document, begin, generation, release, versions_of, wait_only
from scene import VLLM_RECOVERY_TIMEOUT_S, Scene, check_no_errors, running
from stack import WEIGHTS, Stack
from stepping import Stops

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

OLD = WEIGHTS / "base-fp8"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_other_fp8(tmp_path_factory.mktemp("other"), noise=LOUD_NOISE)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """An adapter of the old base is live."""
    root = tmp_path_factory.mktemp("release-vllm")
    adapter_files = write_adapter(root / "adapter", OLD, seed=1)
    stack = Stack.make(root, "vllm", OLD, replicas=2)
    oracle = LearnedOracle(picture_questions())
    with running(Scene(stack, Stops(root), [adapter_files], oracle, VLLM_RECOVERY_TIMEOUT_S)) as scene:
        for key in (BASE, str(OLD)):  # generation 1 is known by nothing, a later one by its directory
            oracle.learn(stack, "small@0", key)
        adapter = scene.publish()
        oracle.learn(stack, adapter, weights_by_version(stack)[adapter])
        yield scene


def test_there_by_a_rolling_swap_and_back_in_place(scene: Scene, other: Path) -> None:
    adapter = scene.alias().live
    with scene.load(num_clients=2) as load:
        load.wait_answers(1)
        there = roll_and_learn(scene, other)
        load.wait_answers(2)
        back = release(scene, OLD, in_place=True)
        load.wait_answers(2)
        assert scene.promote(adapter).is_ok  # the base that it was made for is back
        load.wait_answers(2)
    assert wait_only(scene, back).live == adapter
    scene.judge(load.since())
    check_no_errors(load.since())
    assert versions_of(load.since()) == [adapter, f"{there}@0", f"{back}@0"]
    wrong = wrong_answers(load.since(), scene.oracle, weights_by_version(scene.stack))
    report([generation(scene, name) for name in (there, back)], load.since(), wrong)


def roll_and_learn(scene: Scene, model: Path) -> str:
    """What the new base answers is learned from its first replica, before an alias names it."""
    scene.stops.arm("probe", "exit")
    with scene.stops.released():
        name = str(begin(scene, model)["id"])
        scene.stops.wait_reached(VLLM_RECOVERY_TIMEOUT_S)
        assert isinstance(scene.oracle, LearnedOracle)
        scene.oracle.learn(scene.stack, f"{name}@0", str(model))
        assert scene.oracle.texts(str(model)) != scene.oracle.texts(BASE), "nothing could be told by the answers"
        scene.stops.let_go()
    wait_only(scene, name)
    return name


def report(releases: list[Document], outcomes: Sequence[Outcome], wrong: Sequence[str]) -> None:
    """`bench-results/release-vllm.json`: the seconds of each step, and how many requests failed."""
    counts = {
        "requests": len(outcomes),
        "requests failed": len(errors(outcomes)),
        "answers by another version than named": len(wrong),
    }
    metrics = [Metric(name, "count", [float(count)]) for name, count in counts.items()]
    for how, one in zip(("rolling", "in place"), releases, strict=True):
        metrics += [Metric(f"{how}: {step['step']}", "s", [step["seconds"]]) for step in one["steps"]]
    config = {"model": json.dumps([str(OLD.name), "other-fp8"]), "replicas": 2}
    write("release-vllm", "pytest -m slow tests/chaos/test_release_vllm.py", config, metrics)
