"""How an overview looks on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.cli.overview import Overview, Problem, Silence

if TYPE_CHECKING:
    from gateway.client import Alias, Replica

_REPLICA_COLUMNS = ("replica", "state", "versions", "in flight", "run", "wait", "cache", "ttft p50/95 ms", "slots")
_SERVING = "serving"
_ALIAS_COLUMNS = ("alias", "engine", "live", "previous", "generation")


def render(seen: Overview | Silence) -> RenderableType:
    """The tables, if there are any, and a line for each problem."""
    parts: list[RenderableType] = [*_tables(seen), *map(_problem_line, seen.problems())]
    return Group(*parts)


def headline(seen: Overview) -> str:
    in_service = sum(replica.in_service for replica in seen.replicas)
    state = "ready" if seen.is_ready else "not ready"
    return (
        f"{seen.url}: {state}; {in_service} of {len(seen.replicas)} replicas in service, {seen.num_versions} versions"
    )


def _tables(seen: Overview | Silence) -> list[RenderableType]:
    if isinstance(seen, Silence):
        return [Text(f"{seen.url} does not answer", style="bold red")]
    return [
        Text(headline(seen)),
        _table(_REPLICA_COLUMNS, [_replica_row(replica) for replica in seen.replicas]),
        _table(_ALIAS_COLUMNS, [_alias_row(alias) for alias in seen.aliases]),
    ]


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _replica_row(replica: Replica) -> tuple[str, ...]:
    slots = f"{replica.slots.used}/{'?' if replica.slots.total is None else replica.slots.total}"
    return (
        replica.id,
        _state(replica),
        _versions(replica),
        str(replica.in_flight),
        _or_dash(replica.num_running),
        _or_dash(replica.num_waiting),
        "-" if replica.kv_cache_usage is None else f"{replica.kv_cache_usage:.0%}",
        _latency(replica),
        slots,
    )


def _versions(replica: Replica) -> str:
    """What serves, a line for each job that is a guest there, and what the server can't do."""
    guests: dict[str, list[str]] = {}
    for holder in replica.slots.holders:
        if holder.owner != _SERVING:
            guests.setdefault(holder.owner, []).append(holder.version)
    of_jobs = {version for versions in guests.values() for version in versions}
    own = {holder.version for holder in replica.slots.holders if holder.owner == _SERVING}
    serving = [version for version in replica.versions if version in own or version not in of_jobs]
    lines = [f"job {owner}: {', '.join(versions)}" for owner, versions in sorted(guests.items())]
    words = replica.capabilities.words()
    return "\n".join([", ".join(serving) or "-", *lines, *([words] if words else [])])


def _state(replica: Replica) -> str:
    if not replica.in_service:
        return f"{replica.state}, out"
    return f"ejected {replica.ejected_for_s:.0f} s" if replica.ejected_for_s > 0 else replica.state


def _latency(replica: Replica) -> str:
    if replica.ttft_ms_p50 is None or replica.ttft_ms_p95 is None:
        return "-"
    return f"{replica.ttft_ms_p50:.0f} / {replica.ttft_ms_p95:.0f}"


def _alias_row(alias: Alias) -> tuple[str, ...]:
    return alias.id, alias.engine, alias.live, alias.previous or "-", str(alias.generation)


def _problem_line(problem: Problem) -> Text:
    return Text(f"! {problem.what}. ", style="yellow").append(f"Do: {problem.do}", style="bold")


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
