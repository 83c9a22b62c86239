from collections.abc import Iterator

import pytest
from oracle import FakeOracle, LearnedOracle
from pictures import faded, learn, picture_questions
from scene import FAKE_RECOVERY_TIMEOUT_S, VLLM_RECOVERY_TIMEOUT_S, Scene, running
from stack import WEIGHTS, Stack, train_sft
from stepping import Stops
from tiny_adapter import lora_tensors, write_adapter, write_base


@pytest.fixture(scope="package")
def fake_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two replicas of the fake engine under a gateway that can be stopped at a step; live and previous are adapters."""
    root = tmp_path_factory.mktemp("chaos")
    stack = Stack.make(
        root, "fake", write_base(root / "base"), replicas=2, settings={"engines.small.args.tokens-per-s": 40}
    )
    adapters = [write_adapter(root / f"adapter-{seed}", lora_tensors(seed=seed)) for seed in (1, 2)]
    with running(Scene(stack, Stops(root), adapters, FakeOracle(), FAKE_RECOVERY_TIMEOUT_S)) as scene:
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
