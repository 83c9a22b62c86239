"""What is known of each replica right now: what its actor last said, what the gateway counts, how fast it answers.

Belongs to the event loop. The control plane tells it what it saw, the relay how long first tokens took; whoever wants
to know (`GET /v1/replicas`, and by it `tandem status` and `tandem doctor`) asks for views.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from engines.actor import ReplicaStatus
from engines.capabilities import ALL, Capabilities
from engines.types import EngineHealth, EngineState, VersionName
from gateway.route import RouteTable

UNREACHABLE = "unreachable"
"""The state of a replica whose actor could not be asked; any other is an `EngineState`."""

_BEFORE_READY = frozenset({EngineState.NEW, EngineState.STARTING})
_WINDOW = 512
_NOT_SEEN = "nobody has looked at it yet"


@dataclass(frozen=True, slots=True)
class SlotHolder:
    """`owner` leases `version`."""

    version: VersionName
    owner: str


@dataclass(frozen=True, slots=True)
class SlotUse:
    """Adapter slots of one engine: those that hold an adapter, all (None: not known yet), and who leases them."""

    used: int
    total: int | None
    holders: tuple[SlotHolder, ...]


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica at one moment. What only its actor can say is None while the actor does not answer.

    `in_service`: routed and ready. `versions`: the adapters that requests may count on there, or, while it is not in
    service, those that it last said it holds. `in_flight`: requests that the gateway has on it. `ttft_ms_*`: of its
    last answers, at most 512. `ejected_for_s`: how long no request goes there after failures; 0: not ejected.
    `capabilities`: what its server can't do, of a remote one by its last probe.
    """

    name: str
    engine: str
    state: str
    detail: str
    in_service: bool
    versions: tuple[VersionName, ...]
    in_flight: int
    num_running: int | None
    num_waiting: int | None
    kv_cache_usage: float | None
    ttft_ms_p50: float | None
    ttft_ms_p95: float | None
    ejected_for_s: float
    slots: SlotUse
    seen_s_ago: float | None
    capabilities: Capabilities = ALL


@dataclass(slots=True)
class _Entry:
    engine: str
    status: ReplicaStatus | None = None
    seen_s: float | None = None
    missed: str = ""


@dataclass(frozen=True, slots=True)
class _Known:
    """One replica as views are made from it."""

    name: str
    entry: _Entry
    ttfts_s: Sequence[float] = field(default_factory=tuple)


class ReplicaBoard:
    """`clock` is monotonic, in seconds, and the one that `views` takes its `now_s` from."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._ttfts_s: dict[str, deque[float]] = {}

    def saw(self, name: str, engine: str, status: ReplicaStatus) -> None:
        """The replica's actor answered."""
        self._entries[name] = _Entry(engine, status, self._clock())

    def missed(self, name: str, engine: str, why: str) -> None:
        """The replica's actor could not be asked; what it said before stays known, with its age."""
        entry = self._entries.setdefault(name, _Entry(engine))
        entry.missed = why or "it did not answer"

    def forget(self, name: str) -> None:
        """The replica is no part of the gateway any more."""
        self._entries.pop(name, None)
        self._ttfts_s.pop(name, None)

    def note_ttft(self, name: str, seconds: float) -> None:
        """One answer's time to its first token, as the gateway saw it."""
        self._ttfts_s.setdefault(name, deque(maxlen=_WINDOW)).append(seconds)

    def views(self, routes: RouteTable, now_s: float | None = None) -> tuple[ReplicaView, ...]:
        """Every replica that was seen, missed or routed, by name."""
        moment = self._clock() if now_s is None else now_s
        return tuple(self._view(known, routes, moment) for known in self._known(routes))

    def _known(self, routes: RouteTable) -> Iterable[_Known]:
        routed = {route.name: _Entry(route.engine) for route in routes.snapshot.replicas.values()}
        for name, entry in sorted({**routed, **self._entries}.items(), key=_by_number):
            yield _Known(name, entry, self._ttfts_s.get(name, ()))

    def _view(self, known: _Known, routes: RouteTable, now_s: float) -> ReplicaView:
        name, entry = known.name, known.entry
        route = routes.snapshot.replicas.get(name)
        in_service = route is not None and route.ready
        status = entry.status
        stats = status.stats if status is not None and not entry.missed else None
        state, detail = _state(entry, in_service=in_service)
        return ReplicaView(
            name=name,
            engine=entry.engine,
            state=state,
            detail=detail,
            in_service=in_service,
            versions=tuple(sorted(route.versions if route is not None and in_service else _adapters(status))),
            in_flight=routes.load_of(name),
            num_running=stats.num_running if stats else None,
            num_waiting=stats.num_waiting if stats else None,
            kv_cache_usage=stats.kv_cache_usage if stats else None,
            ttft_ms_p50=_percentile_ms(known.ttfts_s, 0.5),
            ttft_ms_p95=_percentile_ms(known.ttfts_s, 0.95),
            ejected_for_s=routes.ejected_for_s(name, now_s),
            slots=_slots(status),
            seen_s_ago=None if entry.seen_s is None else max(0.0, now_s - entry.seen_s),
            capabilities=route.endpoint.capabilities if route is not None else ALL,
        )


def _by_number(item: tuple[str, _Entry]) -> tuple[str, int, str]:
    engine, _, number = item[0].rpartition("/")
    return engine, int(number) if number.isdecimal() else -1, item[0]


def _state(entry: _Entry, *, in_service: bool) -> tuple[str, str]:
    if entry.missed:
        return UNREACHABLE, entry.missed
    health = entry.status.health if entry.status else EngineHealth(EngineState.NEW, _NOT_SEEN)
    if in_service and health.state in _BEFORE_READY:  # it was routed since the last look
        return EngineState.READY, ""
    return health.state, health.detail


def _adapters(status: ReplicaStatus | None) -> frozenset[VersionName]:
    return frozenset(adapter.version for adapter in status.adapters) if status else frozenset()


def _slots(status: ReplicaStatus | None) -> SlotUse:
    if status is None:
        return SlotUse(0, None, ())
    holders = tuple(SlotHolder(lease.version, lease.owner) for lease in status.leases)
    return SlotUse(len(status.adapters), status.num_slots, holders)


def _percentile_ms(ttfts_s: Sequence[float], share: float) -> float | None:
    """The nearest rank: a value that was seen."""
    if not ttfts_s:
        return None
    ordered = sorted(ttfts_s)
    return 1000.0 * ordered[math.ceil(share * len(ordered)) - 1]
