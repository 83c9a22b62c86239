"""Two publishers at once, and what a client sees of one that won."""

from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from threading import Barrier

import pytest
from load import Asker, Ending
from oracle import weights_by_version
from scene import Answer, Scene

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

NUM_RACES = 10


def test_of_two_publishers_at_once_one_wins_and_the_other_gets_409(fake_scene: Scene) -> None:
    for _ in range(NUM_RACES):
        before = fake_scene.alias()
        versions = [fake_scene.register(), fake_scene.register()]
        answers = race(fake_scene, versions)
        (winner,) = [version for version in versions if answers[version].is_ok]
        (loser,) = [version for version in versions if version != winner]
        assert answers[loser].status == 409
        after = fake_scene.alias()
        assert (after.live, after.previous, after.generation) == (winner, before.live, before.generation + 1)
    assert fake_scene.promote(loser).is_ok
    fake_scene.wait_consistent()


def race(scene: Scene, versions: list[str]) -> dict[str, Answer]:
    """Both at once; whoever is first stands at its first step until the other has its answer."""
    scene.stops.arm("verify", "entry")
    start = Barrier(len(versions))

    def publish(version: str) -> Answer:
        start.wait(timeout=60)
        return scene.promote(version)

    with ThreadPoolExecutor(len(versions)) as pool:
        running = {version: pool.submit(publish, version) for version in versions}
        wait(running.values(), timeout=60, return_when=FIRST_COMPLETED)
        scene.stops.let_go()
        return {version: one.result(timeout=60) for version, one in running.items()}


def test_an_identical_prompt_is_answered_by_the_new_weights(fake_scene: Scene) -> None:
    asker = Asker(fake_scene.stack, fake_scene.stack.alias)
    try:
        texts = []
        for _ in range(2):
            version = fake_scene.publish()
            outcome = asker.ask(0, fake_scene.oracle.questions[0], stream=False)
            assert outcome.ending is Ending.ANSWERED
            assert outcome.version == version
            assert outcome.text == fake_scene.oracle.text(weights_by_version(fake_scene.stack)[version], 0)
            texts.append(outcome.text)
        assert texts[0] != texts[1]
    finally:
        asker.close()
