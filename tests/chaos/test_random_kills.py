"""Kills at random instants under load, publishes and feedback: nobody is lied to, and nothing acknowledged is lost."""

import os

import pytest
from random_kills import Plan, run
from scene import Scene

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SEED = 4


def duration_s(default: float) -> float:
    """A rehearsal may be shorter."""
    return float(os.environ.get("TANDEM_CHAOS_S", default))


@pytest.mark.timeout(1200)
def test_ten_minutes_of_random_kills_on_fake(fake_scene: Scene) -> None:
    assert run(fake_scene, Plan("chaos-fake", SEED, duration_s(600), (5.0, 10.0))).kills


@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_a_minute_of_random_kills_on_vllm(vllm_scene: Scene) -> None:
    assert run(vllm_scene, Plan("chaos-vllm", SEED, duration_s(60), (15.0, 20.0))).kills
