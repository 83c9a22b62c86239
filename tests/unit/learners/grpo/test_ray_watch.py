"""The watch over Ray's head: looks are scripted, a second apart on a clock of the test's."""

from __future__ import annotations

import socket

import pytest

from engines.errors import Unavailable
from engines.ray_head import RayPeer
from learners.grpo.ray_watch import RayWatch

pytestmark = pytest.mark.timeout(20)
PATIENCE_S = 3.0


class Looks:
    """Takes the place of a peer and of the clock: each look takes a second."""

    def __init__(self, *answers: bool) -> None:
        self._answers = answers
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def answers(self) -> bool:
        number = int(self.now_s)
        self.now_s += 1.0
        return number < len(self._answers) and self._answers[number]

    def __str__(self) -> str:
        return "Ray's head at somewhere"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learners.grpo.ray_watch.LOOK_EVERY_S", 0.0)


@pytest.mark.parametrize("before", [(), (True,), (True, False, False, True), (False, False, True, False, False, True)])
async def test_a_head_is_gone_once_it_has_been_silent_for_the_patience_and_then_it_is_named(
    before: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(*before)
    monkeypatch.setattr("learners.grpo.ray_watch.time", looks)
    watch = RayWatch((looks,), PATIENCE_S)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match=r"Ray's head at somewhere has been gone for 3 s.*resume the job"):
        await watch.watch()
    assert watch.is_gone
    assert looks.now_s == len(before) + PATIENCE_S + 1


def test_a_peer_answers_as_long_as_it_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        peer = RayPeer("Ray's head", *head.getsockname())
        assert peer.answers()
    assert not peer.answers()
