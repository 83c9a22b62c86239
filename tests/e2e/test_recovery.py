"""What is killed comes back: engine and actor on a real Ray, with the fake engine."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from stack import WEIGHTS, Stack

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack.make(tmp_path_factory.mktemp("recovery"), "fake", WEIGHTS / "base")
    stack.start()
    yield stack
    stack.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.05)


def answers(stack: Stack) -> bool:
    body = {"model": "vqa", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    with stack.client() as http:
        return http.post("/v1/chat/completions", json=body).status_code == 200


def test_an_engine_that_is_killed_is_started_again(stack: Stack) -> None:
    old = stack.engine_pids()
    assert old
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: bool(stack.engine_pids() - old) and answers(stack))


def test_an_actor_that_is_killed_takes_its_engine_along_and_both_come_back(stack: Stack) -> None:
    old = stack.engine_pids()
    (actor,) = [p for p in psutil.process_iter(["name", "cmdline"]) if is_actor_of(p, old)]
    actor.kill()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in old))
    wait_for(lambda: bool(stack.engine_pids()) and answers(stack))


def is_actor_of(process: psutil.Process, engine_pids: set[int]) -> bool:
    try:
        is_worker = "EngineActor" in " ".join(process.info["cmdline"] or [])
        return is_worker and bool(engine_pids & {child.pid for child in process.children(recursive=True)})
    except psutil.NoSuchProcess:
        return False


def test_another_configuration_of_a_running_engine_is_refused(stack: Stack) -> None:
    gateway = psutil.Process(stack.gateway_pid())
    gateway.terminate()
    gateway.wait(60)
    refused = stack.try_tandem("serve", "--detach", "-c", str(stack.config), "--set", "engines.small.max_loras=7")
    assert refused.returncode == 2
    assert "tandem stop" in refused.stderr
    stack.start()
    assert answers(stack)
