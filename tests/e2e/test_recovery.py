"""What is killed comes back: engine and actor on a real Ray, with the fake engine."""

from collections.abc import Iterator

import psutil
import pytest
from replicas import find_replicas, replica
from stack import WEIGHTS, Stack, wait_until

from engines.lifeline import group_members

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
NAME = "small/0"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack.make(tmp_path_factory.mktemp("recovery"), "fake", WEIGHTS / "base")
    stack.start()
    yield stack
    stack.stop()


def answers(stack: Stack) -> bool:
    body = {"model": "vqa", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    with stack.client() as http:
        return http.post("/v1/chat/completions", json=body).status_code == 200


def test_an_engine_that_is_killed_is_started_again(stack: Stack) -> None:
    old = replica(stack, NAME).running
    old.kill()
    wait_until(lambda: engine_of(stack) not in (None, old.group) and answers(stack), "another engine answers")
    assert replica(stack, NAME).running.group != old.group


def test_an_actor_that_is_killed_takes_its_engine_along_and_both_come_back(stack: Stack) -> None:
    old = replica(stack, NAME)
    old.kill_actor()
    assert not group_members(old.running.group)
    wait_until(lambda: engine_of(stack) not in (None, old.running.group) and answers(stack), "another engine answers")
    assert replica(stack, NAME).actor_pid != old.actor_pid


def engine_of(stack: Stack) -> int | None:
    """The process group of the replica's engine, if it has an actor and an engine."""
    found = find_replicas(stack).get(NAME)
    return None if found is None or found.engine is None else found.engine.group


def test_another_configuration_of_a_running_engine_is_refused(stack: Stack) -> None:
    gateway = psutil.Process(stack.gateway_pid())
    gateway.terminate()
    gateway.wait(60)
    refused = stack.try_tandem("serve", "--detach", "-c", str(stack.config), "--set", "engines.small.max_loras=7")
    assert refused.returncode == 2
    assert "tandem stop" in refused.stderr
    stack.start()
    assert answers(stack)
