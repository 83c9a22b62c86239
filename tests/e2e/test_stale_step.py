"""A delivery to real vLLM on FP8 finds an engine that serves each step under the name of the next."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from benchmark import Metric, write
from planted_replica import PlantedReplica
from stack import WEIGHTS, run_learner

from engines.adapter import pack, read_base, verify
from engines.adapter.manifest import read_manifest
from engines.config import EngineConfig
from engines.errors import Refused
from engines.profiles import PROFILES
from engines.proof import check_agreement
from engines.types import VersionName
from learners.config import GrpoConfig
from learners.grpo.delivery import Delivery, Push
from rollout.types import Target

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

PROFILE = PROFILES["qwen3_vl"]
NUM_STEPS = 6
DELIVERY_TIMEOUT_S = 60.0
MAX_STALE_STEPS = 3
"""Until a lag of one step is found."""
MAX_MISMATCH = GrpoConfig.model_fields["max_mismatch"].default
PROBE_SIZE = GrpoConfig.model_fields["probe_size"].default
JOB = """
name = "steps"
root = "{root}"
model = "{weights}/base"
data = "{data}"
learning_rate = 1e-3
max_steps = {max_steps}
save_every = 1
probe_size = {probe_size}
"""


class Sampled:
    """What a delivery says is to be sampled from."""

    def __init__(self) -> None:
        self.versions: list[VersionName] = []

    def use(self, version: VersionName, targets: tuple[Target, ...]) -> None:
        self.versions.append(version)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The first half of a run's checkpoints, one a step: later ones learn at a rate near zero."""
    root = tmp_path_factory.mktemp("steps")
    data, job = root / "rows.jsonl", root / "job.toml"
    run_learner("toy", "rows", "--set", "corrections", "--num", "200", "--seed", "7", "--out", str(data))
    values = {"root": root, "weights": WEIGHTS, "data": data, "max_steps": 2 * NUM_STEPS, "probe_size": PROBE_SIZE}
    job.write_text(JOB.format(**values))
    run_learner("sft", "--config", str(job))
    return [root / "steps" / "checkpoints" / f"step-{number}" for number in range(1, NUM_STEPS + 1)]


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[PlantedReplica]:
    config = EngineConfig(model=str(WEIGHTS / "base-fp8"), max_loras=5, reserved_for_rollout=3)
    replica = PlantedReplica(config, tmp_path)
    try:
        await replica.start()
        yield replica
    finally:
        await replica.stop()


def push_of(job: str, step: Path) -> Push:
    """A step's checkpoint, as `job` would send it."""
    version = VersionName(f"{job}.1/step", int(step.name.removeprefix("step-")))
    modules = verify(step, read_base(WEIGHTS / "base"), max_rank=16).modules
    return Push(version, pack(version, step), modules, read_manifest(step).probe)


async def deliver_noting(
    delivery: Delivery, replica: PlantedReplica, steps: Sequence[Path], errors: list[float]
) -> None:
    """Notes the error also of what is refused, which ends it."""
    for step in steps:
        push = push_of("lagging", step)
        try:
            await delivery.deliver(push, DELIVERY_TIMEOUT_S)
        finally:
            errors.append(await error_of(replica, push))


async def error_of(replica: PlantedReplica, push: Push) -> float:
    prompts = [record.prompt() for record in push.records]
    base, adapter = [await replica.probe(version, prompts) for version in (VersionName("own", 0), push.version)]
    return check_agreement(push.records, base, adapter).error


def delivery_to(replica: PlantedReplica, owner: str, sampled: Sampled) -> Delivery:
    return Delivery(
        [replica],  # type: ignore[list-item]  # all that is asked of one
        owner=owner,
        profile=PROFILE,
        max_mismatch=MAX_MISMATCH,
        in_use=frozenset,
        use=sampled.use,
    )


async def test_an_engine_that_lags_one_step_behind_is_found_and_one_that_does_not_is_not(
    steps: list[Path], replica: PlantedReplica
) -> None:
    """Its hashes and modules are right, and its error is within `max_mismatch`."""
    sampled = Sampled()
    fresh = delivery_to(replica, "honest", sampled)
    honest = [(await fresh.deliver(push_of("honest", step), DELIVERY_TIMEOUT_S)).error for step in steps]
    await fresh.close()
    assert [str(version) for version in sampled.versions] == [f"honest.1/step@{n}" for n in range(1, NUM_STEPS + 1)]

    lagging = delivery_to(replica, "lagging", Sampled())
    await lagging.deliver(push_of("lagging", steps[0]), DELIVERY_TIMEOUT_S)
    replica.is_stale = True
    planted: list[float] = []
    with pytest.raises(Refused, match="the weights before these"):
        await deliver_noting(lagging, replica, steps[1:], planted)
    assert max(planted) < MAX_MISMATCH
    assert len(planted) <= MAX_STALE_STEPS
    write(
        "grpo-stale",
        "pytest -m slow tests/e2e/test_stale_step.py",
        {"engine": "vllm, FP8, one", "learning_rate": 1e-3, "steps": NUM_STEPS, "probe_size": PROBE_SIZE},
        [
            Metric("error of the weights that were sent", "nats", honest),
            Metric("error of the weights before, until they were refused", "nats", planted),
        ],
    )
