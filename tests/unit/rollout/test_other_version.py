"""An engine that answers for another version than asked, from its socket to what the learner is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tiny_adapter import write_adapter

from engines.config import EngineConfig
from engines.fake import FakeEngine
from engines.fake.faults import Faults
from engines.types import AdapterRef, VersionName
from rollout.config import RewardConfig, RolloutConfig
from rollout.flow import Flow, Plan
from rollout.messages import Message, Text
from rollout.types import Group, Prompt, Target, Task
from rollout.worker import RolloutWorker

pytestmark = pytest.mark.timeout(60)
VERSION = VersionName("grpo.1/step", 1)
MAX_ATTEMPTS = 2
NUM_WRONG = MAX_ATTEMPTS + 1
CONFIG = RolloutConfig(engine="small", max_attempts=MAX_ATTEMPTS, max_retries=0)
PROMPT = Prompt("row 0", (Message("user", (Text("which colour?"),)),), {"answer": "teal"})


class WorkerOfOneEngine(RolloutWorker):
    """In this process; its engine's fault ends once `NUM_WRONG` groups were asked of it."""

    name = "rollout worker 0"

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(CONFIG, (RewardConfig(name="exact_match"),))
        self._engine = engine
        self._num_asked = 0

    async def sample(self, task: Task) -> Group:
        if self._num_asked == NUM_WRONG:
            await self._engine.set_faults(Faults())
        self._num_asked += 1
        return await super().sample(task)

    async def revive(self) -> None:
        return


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[FakeEngine]:
    served = FakeEngine("small", EngineConfig(model=str(tmp_path), kind="fake"), tmp_path / "logs")
    await served.start()
    await served.load_adapter(AdapterRef(VERSION, 1, write_adapter(tmp_path / "adapter")))
    yield served
    await served.stop()


async def test_another_versions_answers_are_named_and_the_row_is_learned_from_once_the_right_one_answers(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.crew.FIRST_PAUSE_S", 0.0)
    await engine.set_faults(Faults(answer_as="other.1/step@7"))
    worker = WorkerOfOneEngine(engine)
    flow = Flow((worker,), Plan([PROMPT], range(1), group_size=2, groups_per_step=1, max_staleness=0), CONFIG)
    running = asyncio.create_task(flow.run())
    try:
        flow.use(VERSION, (Target("small/0", engine.endpoint),))
        taken = await flow.take(1, timeout_s=30.0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await worker.close()
    assert flow.stats().given_up == ()
    assert [(group.version, len(group.scores)) for group in taken.groups] == [(VERSION, 2)]
    assert flow.stats().dropped == {"other_version": NUM_WRONG}
    assert len(taken.dropped) == NUM_WRONG
    for line in taken.dropped:
        assert "row 0: other_version: 0 of 2 samples came: small/0 was asked for grpo.1/step@1" in line
        assert "answered as 'other.1/step@7'" in line
