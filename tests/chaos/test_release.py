"""Another base model by a rolling swap, under load: all of it or nothing, and nobody is failed or lied to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_scene import running_fake
from releasing import (
    check_nothing_changed,
    check_released,
    generation,
    kill_at,
    live,
    new_model,
    release,
    wait_only,
)
from scene import Scene

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

BEFORE_FLIP = (("start", "entry"), ("probe", "exit"), ("flip", "entry"))
AFTER_FLIP = (("flip", "exit"), ("drain", "entry"), ("drain", "exit"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two replicas of the fake engine, and an adapter of whatever base is live."""
    with running_fake(tmp_path_factory.mktemp("release"), replicas=2) as scene:
        yield scene


def test_a_rolling_swap_under_load_fails_nobody_and_names_what_answers(scene: Scene, tmp_path: Path) -> None:
    report = check_released(scene, new_model(tmp_path))
    assert [step["step"].split()[0] for step in report["steps"]] == "start probe flip drain start probe drain".split()


def test_adapters_of_the_old_base_never_reach_the_new_one(scene: Scene, tmp_path: Path) -> None:
    old = scene.publish()
    released = release(scene, new_model(tmp_path))
    before = wait_only(scene, released)
    answer = scene.promote(old)
    assert answer.status == 409
    assert "another model" in answer.body["error"]["message"]
    assert wait_only(scene, released) == before
    assert scene.publish() == scene.alias().live  # one that is made for the new base


def test_a_release_whose_replica_never_comes_up_changes_nothing(scene: Scene, tmp_path: Path) -> None:
    check_nothing_changed(scene, new_model(tmp_path, starts=False), "does not start")


def test_a_release_that_answers_otherwise_than_its_export_changes_nothing(scene: Scene, tmp_path: Path) -> None:
    check_nothing_changed(scene, new_model(tmp_path, probe=(-9.0, -9.0)), "does not serve what was exported")


@pytest.mark.parametrize(("step", "edge"), BEFORE_FLIP)
def test_a_gateway_that_dies_before_the_flip_undoes_the_release(
    scene: Scene, tmp_path: Path, step: str, edge: str
) -> None:
    before, engine = scene.alias(), live(scene)
    name = kill_at(scene, new_model(tmp_path), step, edge)
    assert wait_only(scene, engine) == before
    assert generation(scene, name)["state"] == "failed"
    assert "interrupted" in generation(scene, name)["reason"]


@pytest.mark.parametrize(("step", "edge"), AFTER_FLIP)
def test_a_gateway_that_dies_after_the_flip_ends_the_release(
    scene: Scene, tmp_path: Path, step: str, edge: str
) -> None:
    name = kill_at(scene, new_model(tmp_path), step, edge)
    assert wait_only(scene, name).live == f"{name}@0"
    assert generation(scene, name)["state"] == "live"
