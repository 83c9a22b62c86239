"""Whatever dies at whatever step of a publish: the alias names one version all replicas hold, and users go on."""

import os
from pathlib import Path

import pytest
from killing import Case, Victim, every_case, fail_at_stage, kill_at_step
from replicas import ReplicaProcess
from scene import Scene
from stepping import STEPS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

QUICK = (
    Case("stage", "entry", Victim.GATEWAY),
    Case("flip", "exit", Victim.GATEWAY),
    Case("probe", "entry", Victim.ENGINE),
    Case("drain", "entry", Victim.ACTOR),
)
# A vLLM replica takes up to a minute to come back: of the replicas' deaths, those that differ most.
VLLM = (
    *(Case(step, "entry", Victim.GATEWAY) for step in STEPS),
    Case("stage", "entry", Victim.ACTOR),
    Case("probe", "entry", Victim.ENGINE),
    Case("flip", "entry", Victim.ACTOR),
    Case("drain", "entry", Victim.ENGINE),
)


def fake_params() -> list[object]:
    return [
        pytest.param(case, id=str(case), marks=() if case in QUICK else (pytest.mark.slow,)) for case in every_case()
    ]


def vllm_params() -> list[object]:
    left_out = pytest.mark.skip(reason="only on the fake: a vLLM replica takes too long to come back to try each death")
    return [pytest.param(case, id=str(case), marks=() if case in VLLM else (left_out,)) for case in every_case()]


@pytest.mark.parametrize("case", fake_params())
def test_a_publish_survives_a_death_at_a_step(fake_scene: Scene, case: Case) -> None:
    further = kill_at_step(fake_scene, case)
    assert fake_scene.alias().live == further


def test_a_load_that_fails_on_one_replica_changes_nothing(fake_scene: Scene) -> None:
    message = fail_at_stage(
        fake_scene,
        "small/1",
        lambda replica, _: replica.running.set_faults(load_fails=True),
        lambda replica: replica.running.set_faults(),
    )
    assert "small/1" in message


def test_a_replica_whose_own_copy_is_damaged_changes_nothing(fake_scene: Scene) -> None:
    assert "damaged" in fail_at_stage(fake_scene, "small/0", truncate)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", vllm_params())
def test_a_publish_to_vllm_survives_a_death_at_a_step(vllm_scene: Scene, case: Case) -> None:
    further = kill_at_step(vllm_scene, case)
    assert vllm_scene.alias().live == further


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_vllm_replica_whose_own_copy_is_damaged_changes_nothing(vllm_scene: Scene) -> None:
    assert "damaged" in fail_at_stage(vllm_scene, "small/0", truncate)


def truncate(replica: ReplicaProcess, version: str) -> None:
    weights: Path = replica.copy_of(version) / "adapter_model.safetensors"
    os.truncate(weights, weights.stat().st_size - 64)
