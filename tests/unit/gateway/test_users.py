"""What a replica's users get is known for the last seconds, and told to its actor while there are any."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import scripted
from gateway_stack import open_stack, until
from scripted import DONE, PIECE, pieces

from engines.types import Endpoint, UserLoad, VersionName
from gateway.route import ReplicaRoute, RouteTable
from gateway.telling import Teller
from gateway.types import AliasRow
from gateway.users import WINDOW_S, UserLoads

NONE = UserLoad(p95_ttft_s=None, p95_itl_s=None, num_in_flight=0, num_requests=0)
PERIOD_S = 0.01


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Hearer:
    """A replica that keeps what it is told. While `hangs`, it does not answer."""

    def __init__(self, name: str, *, hangs: bool = False, trouble: Exception | None = None) -> None:
        self.name = name
        self.heard: list[UserLoad] = []
        self.num_calls = 0
        self._trouble = trouble
        self._hangs = hangs

    async def note_users(self, load: UserLoad) -> None:
        self.num_calls += 1
        if self._hangs:
            await asyncio.Event().wait()
        if self._trouble is not None:
            raise self._trouble
        self.heard.append(load)


def table() -> RouteTable:
    routes = RouteTable()
    routes.set_alias(AliasRow("vqa", "small", VersionName("small", 0), None, 0))
    routes.set_replica(ReplicaRoute("small/0", "small", Endpoint("http://127.0.0.1:9", "t"), ready=True))
    return routes


@asynccontextmanager
async def telling(replicas: Sequence[Hearer], users: UserLoads, routes: RouteTable) -> AsyncIterator[None]:
    task = asyncio.create_task(Teller(replicas, users, routes, PERIOD_S).run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_nobody_was_there_says_so() -> None:
    assert UserLoads().load("small/0", 0) == NONE


def test_percentiles_are_of_values_that_were_seen() -> None:
    users = UserLoads()
    for number in range(1, 101):
        users.note_answer("small/0", number / 100)
        users.note_gap("small/0", number / 1000)
    users.note_answer("small/0", None)
    users.note_answer("small/1", 9.0)
    load = users.load("small/0", 3)
    assert load == UserLoad(p95_ttft_s=0.95, p95_itl_s=0.095, num_in_flight=3, num_requests=101)


def test_what_is_older_than_the_window_does_not_count() -> None:
    clock = Clock()
    users = UserLoads(clock)
    users.note_answer("small/0", 5.0)
    users.note_gap("small/0", 5.0)
    clock.now_s += WINDOW_S / 2
    users.note_answer("small/0", 1.0)
    clock.now_s += WINDOW_S / 2 + 0.1
    assert users.load("small/0", 0) == UserLoad(1.0, None, 0, 1)
    assert not users.is_quiet("small/0")
    clock.now_s += WINDOW_S
    assert users.is_quiet("small/0")
    assert users.load("small/0", 0) == NONE


async def test_a_stream_is_noted_with_its_gaps_and_a_whole_answer_without_a_time(tmp_path: Path) -> None:
    async with scripted.replica(pieces(PIECE, PIECE, DONE)) as engine, open_stack(tmp_path, engine.endpoint) as stack:
        users = stack.services.users
        assert users.load("small/0", 0) == NONE
        await stack.chat("hello", stream=True)
        streamed = users.load("small/0", 0)
        assert streamed.num_requests == 1
        assert streamed.p95_ttft_s is not None
        assert streamed.p95_itl_s is not None
        await stack.chat("hello")
        assert users.load("small/0", 0) == replace(streamed, num_requests=2)


async def test_a_replica_is_told_while_it_has_users_and_once_that_they_have_gone() -> None:
    clock = Clock()
    users, routes, replica = UserLoads(clock), table(), Hearer("small/0")
    async with telling([replica], users, routes):
        with routes.hold(routes.resolve("vqa")):
            await until(lambda: len(replica.heard) >= 2)
        users.note_answer("small/0", 0.5)
        await until(lambda: replica.heard[-1] == UserLoad(0.5, None, 0, 1))
        clock.now_s += 2 * WINDOW_S
        await until(lambda: replica.heard[-1] == NONE)
        others = Hearer("small/1")
        users.note_answer("small/1", 0.5)
        num_heard = len(replica.heard)
        async with telling([others], users, routes):
            await until(lambda: len(others.heard) >= 3)
    assert replica.heard[0].num_in_flight == 1
    assert len(replica.heard) == num_heard


@pytest.mark.parametrize("trouble", [{"hangs": True}, {"trouble": RuntimeError("its actor is of another build")}])
async def test_one_that_does_not_hear_delays_no_other(trouble: dict[str, object]) -> None:
    users, routes = UserLoads(), table()
    deaf, well = Hearer("small/0", **trouble), Hearer("small/1")  # type: ignore[arg-type]
    for name in ("small/0", "small/1"):
        users.note_answer(name, 0.5)
    async with telling([deaf, well], users, routes):
        await until(lambda: len(well.heard) >= 3 and deaf.num_calls > 0)
    assert deaf.heard == []
