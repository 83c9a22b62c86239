"""A scene on the fake engine: a small base, and adapters of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oracle import FakeOracle
from scene import FAKE_RECOVERY_TIMEOUT_S, Scene, running
from stack import Stack
from stepping import Stops
from tiny_adapter import lora_tensors, write_adapter, write_base


@contextmanager
def running_fake(root: Path, replicas: int) -> Iterator[Scene]:
    """Its two adapters fit whatever base is live; the alias names none of them yet."""
    settings = {"engines.small.args.tokens-per-s": 40}
    stack = Stack.make(root, "fake", write_base(root / "base"), replicas=replicas, settings=settings)
    adapters = [write_adapter(root / f"adapter-{seed}", lora_tensors(seed=seed)) for seed in (1, 2)]
    with running(Scene(stack, Stops(root), adapters, FakeOracle(), FAKE_RECOVERY_TIMEOUT_S)) as scene:
        yield scene
