"""Handles onto replicas that serve, and replicas of a job's own, on a real Ray with fake engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("replicas_on_ray.py")
TIMEOUT_S = 200

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S + 30)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("replicas")
    token = root / "token"
    token.write_text("0" * 64)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(root)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(SCRIPT.parent)]),
        },
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_serving_replicas_are_found_by_their_engine(seen: dict[str, Any]) -> None:
    assert seen["attached"]["names"] == ["small/0", "small/1", "small"]


def test_an_engine_that_does_not_serve_is_named_with_those_that_do(seen: dict[str, Any]) -> None:
    said = seen["attached"]["none"]
    assert said.startswith("NotFound: no replica of engine 'big' runs on this Ray; there are: small (installation one)")


def test_an_engine_of_several_installations_is_asked_back_for(seen: dict[str, Any]) -> None:
    assert seen["attached"]["several"].startswith("BadRequest: several installations")
    assert seen["attached"]["several"].endswith("one, two")


def test_a_guest_loads_and_releases_its_own(seen: dict[str, Any]) -> None:
    assert seen["attached"]["loaded"] == "grpo.1/step@1"
    assert seen["attached"]["status"] == ["grpo.1/step@1", True, 2]
    assert seen["attached"]["held"] == 0


def test_a_guest_starts_and_restarts_nothing(seen: dict[str, Any]) -> None:
    assert seen["attached"]["same_endpoint"]
    assert seen["attached"]["restart"].startswith("BadRequest")
    assert seen["attached"]["not_started"].startswith("Unavailable")


def test_a_guest_makes_no_actor_and_finds_the_one_that_the_gateway_makes(seen: dict[str, Any]) -> None:
    assert seen["attached"]["lost"][0].startswith("EngineDown")
    assert seen["attached"]["lost"][1] == []
    assert seen["attached"]["found_again"]


def test_an_engine_of_a_jobs_own_serves_nobody_else(seen: dict[str, Any]) -> None:
    assert seen["own"]["name"] == ["own/0", "own"]
    assert (seen["own"]["actors"], seen["own"]["groups"], seen["own"]["servers"]) == (1, 1, True)
    assert seen["own"]["hidden"].startswith("NotFound")


def test_nothing_is_left_of_an_own_engine_that_was_stopped(seen: dict[str, Any]) -> None:
    assert seen["own"]["left"] == [0, [], False]
    assert seen["own"]["actor_is_gone"]


def test_an_own_engine_ends_with_its_driver(seen: dict[str, Any]) -> None:
    assert seen["killed"] == {
        "before": [True, 1], "server_is_gone": True, "group_is_gone": True, "actor_is_gone": True,
    }  # fmt: skip
