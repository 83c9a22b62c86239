"""Another base model by a rolling swap, under load: all of it or nothing, and nobody is failed or lied to."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracle import FakeOracle
from releasing import begin, generation, versions_of, wait_ended, wait_only, write_model
from scene import FAKE_RECOVERY_TIMEOUT_S, Scene, check_no_errors, check_only_lost_connections, running
from stack import Stack
from stepping import Stops
from tiny_adapter import lora_tensors, write_adapter, write_base

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

BEFORE_FLIP = (("start", "entry"), ("probe", "exit"), ("flip", "entry"))
AFTER_FLIP = (("flip", "exit"), ("drain", "entry"), ("drain", "exit"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two replicas of the fake engine, and an adapter of whatever base is live."""
    root = tmp_path_factory.mktemp("release")
    settings = {"engines.small.args.tokens-per-s": 40}
    stack = Stack.make(root, "fake", write_base(root / "base"), replicas=2, settings=settings)
    adapters = [write_adapter(root / f"adapter-{seed}", lora_tensors(seed=seed)) for seed in (1, 2)]
    with running(Scene(stack, Stops(root), adapters, FakeOracle(), FAKE_RECOVERY_TIMEOUT_S)) as scene:
        yield scene


def test_a_rolling_swap_under_load_fails_nobody_and_names_what_answers(scene: Scene, tmp_path: Path) -> None:
    adapter = scene.publish()
    before = scene.alias()
    with scene.load() as load:
        load.wait_answers(2)
        report = json.loads(
            scene.stack.tandem("engines", "release", "small", str(new_model(tmp_path)), *options(scene))
        )
        load.wait_answers(3)
    after = wait_only(scene, report["id"])
    assert report["state"] == "live"
    assert [step["step"].split()[0] for step in report["steps"]] == "start probe flip drain start probe drain".split()
    assert (after.live, after.previous, after.generation) == (report["version"], None, before.generation + 1)
    scene.judge(load.since())
    check_no_errors(load.since())
    assert versions_of(load.since()) == [adapter, report["version"]]


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


@pytest.mark.slow
@pytest.mark.parametrize(("step", "edge"), BEFORE_FLIP)
def test_a_gateway_that_dies_before_the_flip_undoes_the_release(
    scene: Scene, tmp_path: Path, step: str, edge: str
) -> None:
    before = scene.alias()
    name = kill_at(scene, new_model(tmp_path), step, edge)
    assert wait_only(scene, engine_of(before.live, scene)) == before
    assert generation(scene, name)["state"] == "failed"
    assert "interrupted" in generation(scene, name)["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "edge"), AFTER_FLIP)
def test_a_gateway_that_dies_after_the_flip_ends_the_release(
    scene: Scene, tmp_path: Path, step: str, edge: str
) -> None:
    name = kill_at(scene, new_model(tmp_path), step, edge)
    assert wait_only(scene, name).live == f"{name}@0"
    assert generation(scene, name)["state"] == "live"


def new_model(root: Path, *, starts: bool = True, probe: tuple[float, ...] = ()) -> Path:
    return write_model(root / "model", seed=abs(hash(str(root))) % 2**31, starts=starts, probe=probe)


def options(scene: Scene) -> tuple[str, ...]:
    return ("-c", str(scene.stack.config), "--json")


def release(scene: Scene, model: Path) -> str:
    """The name of its generation, which is live."""
    ended = wait_ended(scene, begin(scene, model)["id"])
    assert ended["state"] == "live", f"{ended}\n{scene.tail()}"
    return str(ended["id"])


def check_nothing_changed(scene: Scene, model: Path, why: str) -> None:
    """The command exits 4 and says why; aliases, replicas and answers are as before."""
    before = scene.alias()
    with scene.load() as load:
        load.wait_answers(1)
        done = scene.stack.try_tandem("engines", "release", "small", str(model), *options(scene))
        load.wait_answers(2)
    assert done.returncode == 4, done.stderr
    assert why in json.loads(done.stdout)["reason"] + done.stderr + scene.tail()
    assert json.loads(done.stdout)["state"] == "failed"
    assert wait_only(scene, engine_of(before.live, scene)) == before
    scene.judge(load.since())
    check_no_errors(load.since())


def kill_at(scene: Scene, model: Path, step: str, edge: str) -> str:
    """SIGKILLs the gateway at a step under load, and starts it again; the name of the generation."""
    scene.stops.arm(step, edge)
    with scene.stops.released(), scene.load() as load:
        load.wait_answers(1)
        name = str(begin(scene, model)["id"])
        scene.stops.wait_reached(120)
        scene.stack.end_gateway_at_once()
        scene.start_gateway()
        load.wait_answers(2)
    scene.judge(load.since())
    check_only_lost_connections(load.since())
    return name


def engine_of(version: str, scene: Scene) -> str:
    """The generation that serves a version."""
    with scene.stack.client() as http:
        return str(http.get(f"/v1/aliases/{scene.stack.alias}").json()["engine"])
