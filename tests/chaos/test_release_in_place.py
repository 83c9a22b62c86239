"""Another base model in the only replica's process, under load: requests wait, and nobody is failed or lied to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_scene import running_fake
from releasing import check_nothing_changed, check_released, generation, kill_at, live, new_model, wait_only
from replicas import replica
from scene import Scene

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

IN_PLACE = "--in-place"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with running_fake(tmp_path_factory.mktemp("in-place"), replicas=1) as scene:
        yield scene


def test_a_swap_in_place_under_load_fails_nobody_and_keeps_the_process(scene: Scene, tmp_path: Path) -> None:
    group = replica(scene.stack, "small/0").running.group
    report = check_released(scene, new_model(tmp_path), IN_PLACE)
    assert [step["step"].split()[0] for step in report["steps"]] == ["drain", "swap", "probe", "join", "flip"]
    assert replica(scene.stack, "small/0").running.group == group


def test_weights_that_cannot_be_loaded_change_nothing(scene: Scene, tmp_path: Path) -> None:
    check_nothing_changed(scene, new_model(tmp_path, starts=False), "does not start", IN_PLACE)


def test_a_probe_that_refuses_the_new_weights_puts_the_old_ones_back(scene: Scene, tmp_path: Path) -> None:
    check_nothing_changed(scene, new_model(tmp_path, probe=(-9.0, -9.0)), "does not serve what was exported", IN_PLACE)


@pytest.mark.parametrize(("step", "edge"), [("drain", "exit"), ("swap", "exit"), ("flip", "entry")])
def test_a_gateway_that_dies_before_the_flip_serves_the_old_base(
    scene: Scene, tmp_path: Path, step: str, edge: str
) -> None:
    before, engine = scene.alias(), live(scene)
    name = kill_at(scene, new_model(tmp_path), step, edge, in_place=True)
    assert wait_only(scene, engine) == before
    assert generation(scene, name)["state"] == "failed"


def test_a_gateway_that_dies_after_the_flip_serves_the_new_base(scene: Scene, tmp_path: Path) -> None:
    name = kill_at(scene, new_model(tmp_path), "flip", "exit", in_place=True)
    assert wait_only(scene, name).live == f"{name}@0"
