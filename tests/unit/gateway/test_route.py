from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from engines.errors import DeadlineExceeded, NotFound, Unavailable
from engines.types import Endpoint, VersionName
from gateway.route import ReplicaRoute, RouteTable
from gateway.types import AliasRow

BASE, ONE, TWO = VersionName("small", 0), VersionName("vqa", 1), VersionName("vqa", 2)


def table(
    live: VersionName = ONE, previous: VersionName | None = BASE, clock: Callable[[], float] = time.monotonic
) -> RouteTable:
    routes = RouteTable(clock)
    routes.set_alias(AliasRow("vqa", "small", live, previous, 1))
    routes.set_replica(replica("small/0"))
    return routes


def replica(
    name: str, ready: bool = True, versions: frozenset[VersionName] = frozenset({ONE, TWO}), port: int = 1
) -> ReplicaRoute:
    return ReplicaRoute(name, "small", Endpoint(f"http://127.0.0.1:{port}", "t"), ready, versions)


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


def test_only_a_replica_that_holds_the_version_is_asked() -> None:
    routes = table()
    routes.set_replica(replica("small/1", versions=frozenset()))
    with routes.hold(routes.resolve("vqa")):
        assert routes.resolve("vqa").replica.name == "small/0"
        assert routes.resolve("small@0").replica.name == "small/1"
    routes.add_version("small/1", ONE)
    with routes.hold(routes.resolve("vqa")) as first:
        assert routes.resolve("vqa").replica != first.target.replica
    routes.remove_version("small/0", ONE)
    routes.remove_version("small/1", ONE)
    with pytest.raises(Unavailable, match="holds vqa@1"):
        routes.resolve("vqa")


def test_equally_loaded_replicas_take_turns() -> None:
    routes = table()
    routes.set_replica(replica("small/1"))
    asked = []
    for _ in range(4):
        with routes.hold(routes.resolve("vqa")) as hold:
            asked.append(hold.target.replica.name)
    assert asked == ["small/0", "small/1"] * 2


def test_versions_of_an_unknown_replica_do_nothing() -> None:
    routes = table()
    before = routes.snapshot
    routes.add_version("small/7", ONE)
    routes.remove_version("small/7", ONE)
    routes.withdraw("small/7")
    assert routes.snapshot is before


def test_elsewhere_is_the_same_version_on_another_holder() -> None:
    routes = table()
    target = routes.resolve("vqa")
    with pytest.raises(Unavailable):
        routes.elsewhere(target, frozenset({"small/0"}))
    routes.set_replica(replica("small/1"))
    routes.set_alias(AliasRow("vqa", "small", TWO, None, 2))
    other = routes.elsewhere(target, frozenset({"small/0"}))
    assert (other.alias, other.version, other.replica.name) == ("vqa", ONE, "small/1")


def test_moved_hold_counts_on_the_new_replica_and_keeps_its_version() -> None:
    routes = table()
    routes.set_replica(replica("small/1"))
    target = routes.resolve("vqa")
    with routes.hold(target) as hold:
        hold.move(routes.elsewhere(target, frozenset({"small/0"})))
        assert [routes.load_of("small/0"), routes.load_of("small/1"), routes.num_held(ONE)] == [0, 1, 1]
    assert [routes.load_of("small/0"), routes.load_of("small/1"), routes.num_held(ONE)] == [0, 0, 0]


def test_ejected_replica_is_passed_over_until_its_return_unless_it_is_the_last() -> None:
    now_s = [0.0]
    routes = table(clock=lambda: now_s[0])
    with routes.hold(routes.resolve("vqa")) as hold:
        assert hold.fail(unreachable=True)
    assert routes.resolve("vqa").replica.name == "small/0"
    routes.set_replica(replica("small/1"))
    with routes.hold(routes.resolve("vqa")) as hold:
        assert hold.target.replica.name == "small/1"
        assert routes.resolve("vqa").replica.name == "small/1"
        assert routes.ejected_for_s("small/0", 0.25) == 0.75
        now_s[0] = 1.0
        assert routes.resolve("vqa").replica.name == "small/0"


def test_another_process_under_the_name_starts_with_a_clean_record() -> None:
    now_s = [0.0]
    routes = table(clock=lambda: now_s[0])
    with routes.hold(routes.resolve("vqa")) as hold, routes.hold(routes.resolve("vqa")) as late:
        assert hold.fail(unreachable=True)
        routes.add_version("small/0", TWO)
        routes.withdraw("small/0")
        assert routes.ejected_for_s("small/0", 0.0) == 1
        routes.set_replica(replica("small/0", port=2))
        assert routes.ejected_for_s("small/0", 0.0) == 0
        assert not late.fail(unreachable=True)
    assert routes.ejected_for_s("small/0", 0.0) == 0
