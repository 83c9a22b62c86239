"""Ray's head dies under a gateway: a clear state, and the way back that docs/operations.md names."""

import signal
import time
from collections.abc import Callable, Iterator

import httpx2
import psutil
import pytest
from stack import Stack, wait_until
from tiny_adapter import lora_tensors, write_adapter, write_base

from gateway import ray_daemon

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
CLEAR_TIMEOUT_S = 120.0
RAY_GIVES_UP_S = 60.0
"""After so long without a head, Ray ends a process that does not say otherwise."""
CHAT = {"model": "vqa", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}

Pick = Callable[[psutil.Process], list[psutil.Process]]


def named(name: str) -> Pick:
    return lambda head: [p for p in head.children(recursive=True) if p.name() == name]


def whole(head: psutil.Process) -> list[psutil.Process]:
    return [head, *named("gcs_server")(head), *named("raylet")(head)]


DEATHS: dict[str, Pick] = {"gcs": named("gcs_server"), "raylet": named("raylet"), "whole head": whole}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A fake engine, whose alias names an adapter."""
    root = tmp_path_factory.mktemp("ray-head")
    stack = Stack.make(root, "fake", write_base(root / "base"))
    stack.start()
    try:
        with stack.client() as http:
            adapter = write_adapter(root / "adapter", lora_tensors(seed=1))
            made = http.post("/v1/versions", json={"alias": "vqa", "path": str(adapter)})
            assert made.status_code == 201, made.text
            promoted = http.post("/v1/aliases/vqa/promote", json={"version": "vqa@1"})
            assert promoted.status_code == 200, promoted.text
        yield stack
    finally:
        stack.stop()


def kill_head(stack: Stack, pick: Pick) -> None:
    daemon = ray_daemon.find(stack.data / "run")
    assert daemon is not None
    victims = pick(psutil.Process(daemon.pid))
    assert victims
    for victim in victims:
        victim.kill()


def is_down(http: httpx2.Client) -> bool:
    return http.get("/readyz").status_code == 503 and http.post("/v1/chat/completions", json=CHAT).status_code == 503


def assert_says_so(answer: httpx2.Response) -> None:
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("death", DEATHS)
def test_head_that_dies_ends_its_engines_and_the_gateway_says_so_until_both_are_started_again(
    stack: Stack, death: str
) -> None:
    with stack.client() as http:
        completion = http.post("/v1/chat/completions", json=CHAT)
        assert completion.headers["x-tandem-version"] == "vqa@1"
        alias = http.get("/v1/aliases").json()
        engines = stack.engine_pids()
        assert engines

        kill_head(stack, DEATHS[death])
        wait_until(lambda: not any(map(psutil.pid_exists, engines)), "the engines are gone", CLEAR_TIMEOUT_S)
        wait_until(lambda: is_down(http), "the gateway answers 503", CLEAR_TIMEOUT_S)
        assert_says_so(http.get("/readyz"))
        assert_says_so(http.post("/v1/chat/completions", json=CHAT))
        refused = http.post("/v1/aliases/vqa/promote", json={"version": "vqa@1"})
        assert refused.status_code >= 400
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
        assert http.get("/healthz").status_code == 200
        wait_until(lambda: "Ray's head" in stack.gateway_log(), "the log says why and what to do", CLEAR_TIMEOUT_S)

    stack.tandem("stop", "-c", str(stack.config))
    stack.start()
    assert_is_back(stack, completion.json()["id"], alias)


def test_gateway_outlives_the_time_that_ray_gives_it(stack: Stack) -> None:
    with stack.client() as http:
        kill_head(stack, whole)
        killed_s = time.monotonic()
        wait_until(lambda: is_down(http), "the gateway answers 503", CLEAR_TIMEOUT_S)
        wait_until(
            lambda: not is_down(http) or time.monotonic() > killed_s + 1.25 * RAY_GIVES_UP_S,
            "Ray's time limit is over",
            2 * RAY_GIVES_UP_S,
        )
        assert is_down(http)
    gateway = psutil.Process(stack.gateway_pid())
    gateway.send_signal(signal.SIGTERM)
    gateway.wait(CLEAR_TIMEOUT_S)
    stack.start()  # `tandem serve` alone starts another head


def assert_is_back(stack: Stack, completion_id: str, alias: object) -> None:
    with stack.client() as http:
        assert http.get("/v1/aliases").json() == alias
        assert http.get(f"/v1/interactions/{completion_id}").status_code == 200
        again = http.post("/v1/chat/completions", json=CHAT)
        assert again.status_code == 200, again.text
        assert again.headers["x-tandem-version"] == "vqa@1"
