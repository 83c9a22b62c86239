"""A replica whose actor is stopped (SIGSTOP): users are answered on, and it comes back with what is named only."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from replicas import replica
from scene import Publish, Scene, check_no_errors
from stack import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

STOPPED_S = 30.0
STOPPED = "small/1"
UNREACHABLE = "unreachable"
LOAD_DELAY_S = 2.0


@contextmanager
def stopped_actor(scene: Scene) -> Iterator[None]:
    actor = replica(scene.stack, STOPPED)
    actor.signal_actor(signal.SIGSTOP)
    try:
        yield
    finally:
        actor.signal_actor(signal.SIGCONT)


def test_a_publish_that_meets_a_stopped_actor_succeeds_or_fails_cleanly(fake_scene: Scene) -> None:
    before = fake_scene.alias()
    with fake_scene.load() as load:
        with stopped_actor(fake_scene):
            publish = Publish(fake_scene, fake_scene.register())
            threading.Event().wait(STOPPED_S)  # how long the partition lasts
        answer = publish.answer()
        after = fake_scene.wait_consistent()
        load.wait_answers(3)
        if answer.is_ok:
            assert (after.live, after.previous) == (publish.version, before.live)
        else:
            assert after == before
            assert set(answer.body["error"]) == {"message", "type", "param", "code"}
        fake_scene.publish()
        fake_scene.wait_consistent()
        load.wait_answers(3)
    fake_scene.judge(load.since())
    check_no_errors(load.since())


def test_publishes_go_on_without_a_suspended_replica_which_catches_up(fake_scene: Scene) -> None:
    with fake_scene.load() as load:
        with stopped_actor(fake_scene):
            wait_until(lambda: is_suspended(fake_scene), f"{STOPPED} is suspended", STOPPED_S)
            versions = [fake_scene.publish() for _ in range(3)]
            mark = load.mark()
            load.wait_answers(3)
            elsewhere = load.since(mark)
            # It comes back slowly enough that a request which is sent to it too early finds nothing there.
            engine = replica(fake_scene.stack, STOPPED).running
            engine.set_faults(load_delay_s=LOAD_DELAY_S)
        after = fake_scene.wait_consistent()
        engine.set_faults()
        mark = load.mark()
        load.wait_answers(5)
    assert (after.previous, after.live) == tuple(versions[1:])
    assert not [one for one in elsewhere if one.version == versions[-1] and one.replica == STOPPED]
    assert {one.replica for one in load.since(mark)} == {"small/0", STOPPED}
    fake_scene.judge(load.since())
    check_no_errors(load.since())


def is_suspended(scene: Scene) -> bool:
    with scene.stack.client() as http:
        rows = http.get("/v1/replicas").json()["data"]
    return any(row["id"] == STOPPED and row["state"] == UNREACHABLE for row in rows)
