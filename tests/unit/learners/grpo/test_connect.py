"""Which Ray a job is connected to, and that it stays the job which hears signals."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest
import ray

from learners.cancel import listening
from learners.grpo import replicas

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `ray.init`, which handles SIGTERM as Ray does, was asked to connect to."""
    asked: list[str] = []

    def init(*, address: str, **_: Any) -> None:
        asked.append(address)
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(replicas, "find_head", lambda: None)
    monkeypatch.setattr(replicas, "find_node", lambda: None)
    return asked


@pytest.mark.parametrize(("address", "asked"), [("", "local"), ("auto", "auto"), ("10.0.0.1:6379", "10.0.0.1:6379")])
def test_no_address_is_a_ray_of_the_jobs_own_and_never_one_that_runs(
    addresses: list[str], address: str, asked: str
) -> None:
    with listening():
        replicas.connect(address)
    assert addresses == [asked]


@pytest.mark.usefixtures("addresses")
@pytest.mark.parametrize(("address", "is_kept"), [("", False), ("auto", True)])
def test_what_a_submit_says_of_its_cluster_is_not_said_to_a_ray_of_the_jobs_own(
    monkeypatch: pytest.MonkeyPatch, address: str, is_kept: bool
) -> None:
    monkeypatch.setenv(replicas.SUBMITTED_VARIABLE, "{}")
    with listening():
        replicas.connect(address)
    assert (replicas.SUBMITTED_VARIABLE in os.environ) is is_kept


@pytest.mark.usefixtures("addresses")
def test_the_run_hears_signals_once_it_is_connected() -> None:
    with listening() as request:
        replicas.connect("")
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.is_requested
