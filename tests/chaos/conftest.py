from collections.abc import Iterator

import pytest
from fake_scene import running_fake
from oracle import LearnedOracle
from pictures import faded, learn, picture_questions
from scene import VLLM_RECOVERY_TIMEOUT_S, Scene, running
from stack import WEIGHTS, Stack, train_sft
from stepping import Stops


@pytest.fixture(scope="package")
def fake_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two replicas of the fake engine under a gateway that can be stopped at a step; live and previous are adapters."""
    with running_fake(tmp_path_factory.mktemp("chaos"), replicas=2) as scene:
        scene.publish()
        scene.publish()
        yield scene


@pytest.fixture(scope="package")
def vllm_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The same on two replicas of vLLM, with a trained adapter and one that changes nothing."""
    root = tmp_path_factory.mktemp("chaos-vllm")
    trained = train_sft(root / "training")
    stack = Stack.make(root, "vllm", WEIGHTS / "base-fp8", replicas=2)
    oracle = LearnedOracle(picture_questions())
    adapters = [trained, faded(trained, root / "faded")]
    with running(Scene(stack, Stops(root), adapters, oracle, VLLM_RECOVERY_TIMEOUT_S)) as scene:
        learn(scene, oracle)
        yield scene
