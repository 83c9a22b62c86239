"""Replicas on logical GPUs of a real Ray: who gets which, who is refused, and what comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("place_replicas.py")
TIMEOUT_S = 150

pytestmark = [pytest.mark.ray, pytest.mark.timeout(TIMEOUT_S + 30)]


def run(num_gpus: int, root: Path) -> dict[str, Any]:
    token = root / "token"
    token.write_text("0" * 64)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(num_gpus), str(root)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PYTHONPATH": str(ROOT),
        },
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(4, tmp_path_factory.mktemp("gpus"))


@pytest.mark.slow
def test_replicas_see_disjoint_gpus(seen: dict[str, Any]) -> None:
    devices = [set(ids.split(",")) for ids in seen["devices"]]
    assert [len(ids) for ids in devices] == [2, 2]
    assert set.union(*devices) == {"0", "1", "2", "3"}


@pytest.mark.slow
def test_fake_replica_of_one_gpu_takes_none(seen: dict[str, Any]) -> None:
    assert seen["takes_none"] == 0


@pytest.mark.slow
def test_replica_without_room_is_refused_with_the_numbers_and_leaves_no_group(seen: dict[str, Any]) -> None:
    assert seen["refusal"].startswith("Unavailable: no room for engine:i:small/2:abc")
    assert "wants 2 GPUs of one node, and of the cluster's 4 0 are free" in seen["refusal"]
    assert seen["groups_after_refusal"] == ["engine:i:small/0:abc", "engine:i:small/1:abc"]


@pytest.mark.slow
def test_next_actor_of_a_name_finds_the_group_again(seen: dict[str, Any]) -> None:
    assert seen["groups_after_comeback"] == ["engine:i:small/0:abc", "engine:i:small/1:abc"]


@pytest.mark.slow
def test_unplacing_makes_room(seen: dict[str, Any]) -> None:
    devices = [set(ids.split(",")) for ids in seen["devices_after_unplace"]]
    assert [len(ids) for ids in devices] == [2, 2]
    assert not set.intersection(*devices)


@pytest.mark.slow
def test_group_of_another_configuration_is_not_leaked(seen: dict[str, Any]) -> None:
    assert seen["groups_after_another_configuration"] == ["engine:i:small/0:abc", "engine:i:small/2:def"]
    assert seen["removed"] == ["engine:i:small/0:abc", "engine:i:small/2:def"]
    assert seen["groups_at_the_end"] == []


def test_without_gpus_one_is_the_cpu_and_several_are_refused(tmp_path: Path) -> None:
    seen = run(0, tmp_path)
    assert seen["options"] == {"num_cpus": 0}
    assert seen["refusal"].startswith("ConfigError: tensor_parallel: 2 GPUs a replica are asked for")
