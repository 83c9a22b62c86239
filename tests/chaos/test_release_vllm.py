"""To another base by a rolling swap and back in place, on two replicas of vLLM in FP8 under load."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracle import BASE, LearnedOracle, weights_by_version
from other_model import LOUD_NOISE, write_other_fp8
from peft_adapters import write_adapter
from pictures import picture_questions
from releasing import begin, release, versions_of, wait_only, write_figures
from scene import VLLM_RECOVERY_TIMEOUT_S, Scene, check_no_errors, running
from stack import WEIGHTS, Stack
from stepping import Stops

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

OLD = WEIGHTS / "base-fp8"
COMMAND = "pytest -m slow tests/chaos/test_release_vllm.py"


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
    config = {"model": json.dumps([str(OLD.name), "other-fp8"]), "replicas": 2}
    write_figures("release-vllm", COMMAND, config, scene, {"rolling": there, "in place": back}, load.since())


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
