"""The board shows what was last said of each replica, how old that is, and what the gateway itself counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_stack import Stack

from engines.actor import ReplicaStatus
from engines.ledger import SlotLease
from engines.types import Endpoint, EngineHealth, EngineState, EngineStats, LoadedAdapter, VersionName
from gateway.board import UNREACHABLE, ReplicaBoard, ReplicaView
from gateway.route import ReplicaRoute, RouteTable
from gateway.types import AliasRow

BASE, ONE = VersionName("small", 0), VersionName("vqa", 1)
ENDPOINT = Endpoint("http://127.0.0.1:9", "secret-token")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def said(state: EngineState = EngineState.READY, detail: str = "") -> ReplicaStatus:
    return ReplicaStatus(
        health=EngineHealth(state, detail),
        endpoint=ENDPOINT,
        stats=EngineStats(2, 3, 0.25, 0, 0) if state is EngineState.READY else None,
        adapters=(LoadedAdapter(ONE, 1, "hash", ()),),
        leases=(SlotLease(ONE, "serving", 1, None),),
        num_slots=4,
        copies_root=Path("/nowhere"),
    )


def table(*routes: ReplicaRoute) -> RouteTable:
    made = RouteTable()
    made.set_alias(AliasRow("vqa", "small", BASE, None, 0))
    for route in routes:
        made.set_replica(route)
    return made


def route(name: str = "small/0", *, ready: bool = True) -> ReplicaRoute:
    return ReplicaRoute(name, "small", ENDPOINT, ready, frozenset({ONE}))


def only(board: ReplicaBoard, routes: RouteTable, now_s: float | None = None) -> ReplicaView:
    (view,) = board.views(routes, now_s)
    return view


def test_a_replica_shows_what_its_actor_said_and_when() -> None:
    clock = Clock()
    board = ReplicaBoard(clock)
    board.saw("small/0", "small", said())
    view = only(board, table(route()), now_s=102.5)
    assert (view.name, view.engine, view.state, view.detail) == ("small/0", "small", "ready", "")
    assert (view.num_running, view.num_waiting, view.kv_cache_usage) == (2, 3, 0.25)
    assert (view.slots.used, view.slots.total) == (1, 4)
    assert [(str(holder.version), holder.owner) for holder in view.slots.holders] == [("vqa@1", "serving")]
    assert (view.in_service, view.versions, view.seen_s_ago) == (True, (ONE,), 2.5)


def test_one_that_cannot_be_asked_keeps_what_it_said_but_not_its_load() -> None:
    clock = Clock()
    board = ReplicaBoard(clock)
    board.saw("small/0", "small", said())
    clock.now_s += 5
    board.missed("small/0", "small", "no answer within 10 s")
    view = only(board, table(route()))
    assert (view.state, view.detail, view.in_service) == (UNREACHABLE, "no answer within 10 s", True)
    assert (view.num_running, view.num_waiting, view.kv_cache_usage) == (None, None, None)
    assert (view.slots.used, view.seen_s_ago) == (1, 5.0)
    board.saw("small/0", "small", said())
    assert only(board, table(route())).state == EngineState.READY


def test_one_that_never_answered_has_no_age() -> None:
    board = ReplicaBoard()
    board.missed("small/0", "small", "")
    view = only(board, table())
    assert (view.state, view.seen_s_ago, view.slots.total, view.in_service) == (UNREACHABLE, None, None, False)
    assert view.detail


def test_out_of_service_it_shows_what_it_holds_and_in_service_what_is_routed() -> None:
    board = ReplicaBoard()
    board.saw("small/0", "small", said(EngineState.FAILED, "its process ended"))
    view = only(board, table(route(ready=False)))
    assert (view.state, view.detail, view.in_service) == ("failed", "its process ended", False)
    assert view.versions == (ONE,)
    assert only(board, table(ReplicaRoute("small/0", "small", ENDPOINT, ready=True))).versions == ()


@pytest.mark.parametrize(("ready", "state"), [(True, EngineState.READY), (False, EngineState.NEW)])
def test_a_route_that_nobody_looked_at_is_shown(ready: bool, state: EngineState) -> None:
    assert only(ReplicaBoard(), table(route(ready=ready))).state == state


def test_a_replica_that_was_routed_since_the_last_look_is_ready() -> None:
    board = ReplicaBoard()
    board.saw("small/0", "small", said(EngineState.STARTING))
    assert only(board, table(route())).state == EngineState.READY
    assert only(board, table(route(ready=False))).state == EngineState.STARTING


def test_in_flight_is_what_the_gateway_has_there() -> None:
    board, routes = ReplicaBoard(), table(route())
    with routes.hold(routes.resolve("vqa")):
        assert only(board, routes).in_flight == 1
    assert only(board, routes).in_flight == 0


def test_an_ejected_replica_says_for_how_long() -> None:
    board, routes = ReplicaBoard(), table(route())
    assert only(board, routes, now_s=routes.now_s()).ejected_for_s == 0.0
    routes.note_failure(routes.snapshot.replicas["small/0"], routes.now_s(), unreachable=True)
    assert only(board, routes, now_s=routes.now_s()).ejected_for_s > 0.0


def test_latency_is_that_of_the_last_512_answers() -> None:
    board = ReplicaBoard()
    assert only(board, table(route())).ttft_ms_p50 is None
    for number in range(1, 1001):
        board.note_ttft("small/0", number / 1000)
    view = only(board, table(route()))
    assert view.ttft_ms_p50 == pytest.approx(744)  # of 489 to 1000
    assert view.ttft_ms_p95 == pytest.approx(975)


def test_replicas_are_listed_by_number() -> None:
    board = ReplicaBoard()
    for name in ("small/10", "small/2", "large/0"):
        board.saw(name, name.split("/")[0], said())
    assert [view.name for view in board.views(table())] == ["large/0", "small/2", "small/10"]


def test_a_forgotten_replica_is_not_shown() -> None:
    board = ReplicaBoard()
    board.saw("small/0", "small", said())
    board.note_ttft("small/0", 1.0)
    board.forget("small/0")
    assert board.views(table()) == ()


async def test_the_gateway_lists_its_replicas_without_their_address(stack: Stack) -> None:
    await stack.chat("hello", stream=True)
    body = (await stack.http.get("/v1/replicas")).json()
    assert body.keys() == {"object", "data", "has_more"}
    (row,) = body["data"]
    assert (row["id"], row["object"], row["engine"]) == ("small/0", "replica", "small")
    assert (row["in_service"], row["in_flight"], row["ejected_for_s"]) == (True, 0, 0.0)
    assert row["ttft_ms_p50"] > 0
    endpoint = stack.services.routes.snapshot.replicas["small/0"].endpoint
    assert endpoint.token not in str(body)
    assert endpoint.url not in str(body)


async def test_readiness_and_metrics_name_a_replica_that_is_out(stack: Stack) -> None:
    stack.services.board.missed("small/1", "small", "its actor is gone")
    try:
        ready = await stack.http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert ready.json()["replicas"] == {"small/0": True, "small/1": False}
        metrics = (await stack.http.get("/metrics")).text
        assert 'tandem_replica_up{replica="small/1"} 0.0' in metrics
        assert 'tandem_replica_up{replica="small/0"} 1.0' in metrics
    finally:
        stack.services.board.forget("small/1")
