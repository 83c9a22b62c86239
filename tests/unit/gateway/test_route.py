from __future__ import annotations

import asyncio

import pytest

from engines.errors import DeadlineExceeded, NotFound, Unavailable
from engines.types import Endpoint, VersionName
from gateway.route import ReplicaRoute, RouteTable
from gateway.types import AliasRow

BASE, ONE, TWO = VersionName("small", 0), VersionName("vqa", 1), VersionName("vqa", 2)


def table(live: VersionName = ONE, previous: VersionName | None = BASE) -> RouteTable:
    routes = RouteTable()
    routes.set_alias(AliasRow("vqa", "small", live, previous, 1))
    routes.set_replica(replica("small/0"))
    return routes


def replica(name: str, ready: bool = True) -> ReplicaRoute:
    return ReplicaRoute(name, "small", Endpoint("http://127.0.0.1:1", "t"), ready)


@pytest.mark.parametrize(("model", "version"), [("vqa", ONE), ("vqa@1", ONE), ("small@0", BASE)])
def test_aliases_and_loaded_versions_resolve(model: str, version: VersionName) -> None:
    assert table().resolve(model).version == version


@pytest.mark.parametrize("model", ["vqa@2", "small", "other@0", "vqa@01", "", "VQA", "vqa@1 "])
def test_what_no_alias_names_is_not_found(model: str) -> None:
    with pytest.raises(NotFound, match="there are"):
        table().resolve(model)


def test_withdrawn_replica_takes_no_request_until_it_is_back() -> None:
    routes = table()
    routes.withdraw("small/0")
    with pytest.raises(Unavailable):
        routes.resolve("vqa")
    routes.set_replica(replica("small/0"))
    assert routes.resolve("vqa").replica.name == "small/0"


def test_least_loaded_replica_is_picked() -> None:
    routes = table()
    routes.set_replica(replica("small/1"))
    with routes.hold(routes.resolve("vqa")):
        assert routes.resolve("vqa").replica.name == "small/1"


async def test_held_version_drains_when_its_last_request_ends() -> None:
    routes = table()
    with routes.hold(routes.resolve("vqa")):
        routes.set_alias(AliasRow("vqa", "small", TWO, ONE, 2))
        assert routes.resolve("vqa").version == TWO
        with routes.hold(routes.resolve("vqa@1")):
            waiting = asyncio.create_task(routes.drained(ONE, 5))
            await asyncio.sleep(0)
        assert not waiting.done()
        assert routes.num_held(ONE) == 1
    await waiting
    await routes.drained(ONE, 0)


async def test_version_in_use_does_not_drain_in_time() -> None:
    routes = table()
    with routes.hold(routes.resolve("vqa")), pytest.raises(DeadlineExceeded, match="stays loaded"):
        await routes.drained(ONE, 0.01)


def test_snapshot_of_a_reader_does_not_change() -> None:
    routes = table()
    before = routes.snapshot
    routes.set_alias(AliasRow("vqa", "small", TWO, ONE, 2))
    assert before.aliases["vqa"].live == ONE
    assert routes.named_versions() == {TWO, ONE}
