"""What `tandem status` shows: the gateway's answers, what is wrong by them, and which parts are there without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.errors import DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from gateway.cli.parts import Parts
    from gateway.client import Alias, GatewayClient, Replica

_UNREACHABLE = "unreachable"
_STALE_S = 10.0
_FULL_CACHE = 0.95


@dataclass(frozen=True, slots=True)
class Problem:
    """`what` is wrong, and what to `do` about it."""

    what: str
    do: str


@dataclass(frozen=True, slots=True)
class Overview:
    """One moment of a gateway that answers."""

    url: str
    is_ready: bool
    replicas: tuple[Replica, ...]
    aliases: tuple[Alias, ...]
    models: tuple[str, ...]
    num_versions: int

    def problems(self) -> tuple[Problem, ...]:
        return tuple(self._problems())

    def document(self) -> dict[str, object]:
        """What `--json` prints."""
        return {
            "url": self.url,
            "ready": self.is_ready,
            "replicas": [replica.model_dump(mode="json") for replica in self.replicas],
            "aliases": [alias.model_dump(mode="json") for alias in self.aliases],
            "models": list(self.models),
            "versions": self.num_versions,
            "problems": _documents(self.problems()),
        }

    def _problems(self) -> Iterator[Problem]:
        if not self.is_ready:
            yield Problem("no replica can answer", "tandem doctor")
        for replica in self.replicas:
            yield from _problems_of(replica, self._named(replica.engine))

    def _named(self, engine: str) -> frozenset[str]:
        names = (name for alias in self.aliases if alias.engine == engine for name in (alias.live, alias.previous))
        return frozenset(name for name in names if name is not None and not name.endswith("@0"))


@dataclass(frozen=True, slots=True)
class Silence:
    """The gateway does not answer: what it said instead, and what is there. `parts` is None for a foreign URL."""

    url: str
    why: str
    parts: Parts | None

    def problems(self) -> tuple[Problem, ...]:
        if self.parts is None:
            return (Problem(self.why, "tandem serve"),)
        return (Problem(f"{self.why}; {self.parts.words}", self.parts.do),)

    def document(self) -> dict[str, object]:
        parts = None if self.parts is None else self.parts.document()
        return {"url": self.url, "ready": False, "parts": parts, "problems": _documents(self.problems())}


def look(gateway: GatewayClient) -> Overview:
    """Raises `Unavailable` or `DeadlineExceeded` if the gateway does not answer."""
    return Overview(
        url=gateway.url,
        replicas=tuple(gateway.replicas()),
        aliases=tuple(gateway.aliases()),
        models=tuple(gateway.models()),
        num_versions=len(gateway.versions()),
        is_ready=gateway.is_ready(),
    )


def try_look(gateway: GatewayClient) -> Overview | str:
    """The overview, or why there is none."""
    try:
        return look(gateway)
    except (Unavailable, DeadlineExceeded) as error:
        return error.message


def _problems_of(replica: Replica, named: frozenset[str]) -> Iterator[Problem]:
    if not replica.in_service:
        reason = f" ({replica.detail.splitlines()[0]})" if replica.detail else ""
        yield Problem(f"{replica.id} is {replica.state}{reason} and gets no requests", "tandem doctor")
        return
    lacking = sorted(named - set(replica.versions))
    if lacking:
        yield Problem(f"{replica.id} does not hold {', '.join(lacking)}", "tandem doctor")
    if replica.ejected_for_s > 0:
        again = f"it gets them again in {replica.ejected_for_s:.0f} s"
        yield Problem(f"{replica.id} failed requests; {again}", f"look at the log of engine {replica.engine}")
    if replica.state == _UNREACHABLE:
        yield Problem(f"{replica.id} answers users, but its actor does not: no publish waits for it", "tandem doctor")
    if replica.seen_s_ago is not None and replica.seen_s_ago > _STALE_S:
        yield Problem(f"nobody could look at {replica.id} for {replica.seen_s_ago:.0f} s", "tandem doctor")
    if replica.num_waiting and (replica.kv_cache_usage or 0.0) > _FULL_CACHE:
        yield Problem(f"{replica.id}'s cache is full, {replica.num_waiting} requests wait", "add a replica")


def _documents(problems: tuple[Problem, ...]) -> list[dict[str, str]]:
    return [{"what": problem.what, "do": problem.do} for problem in problems]
