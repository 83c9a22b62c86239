"""Versions: immutable adapters and where each stands. Their numbers are never used twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, select, update

from engines.errors import NotFound
from engines.types import VersionName
from gateway.store.database import Database
from gateway.store.tables import version_numbers, versions
from gateway.types import VersionRow, VersionState, check_transition


@dataclass(frozen=True, slots=True)
class StateChange:
    """A version's next state, and why it got there."""

    name: VersionName
    state: VersionState
    reason: str | None = None


class Versions:
    def __init__(self, database: Database) -> None:
        self._database = database

    def next_number(self, alias: str) -> int:
        """Takes a number, from 1 up; it stays taken whether or not a version comes of it."""
        query = select(version_numbers.c.last).where(version_numbers.c.alias == alias).with_for_update()
        with self._database.write() as connection:
            last = connection.execute(query).scalar_one_or_none()
            if last is None:
                connection.execute(version_numbers.insert(), [{"alias": alias, "last": 1}])
                return 1
            number = int(last) + 1
            connection.execute(update(version_numbers).where(version_numbers.c.alias == alias).values(last=number))
            return number

    def add(self, row: VersionRow) -> None:
        with self._database.write() as connection:
            connection.execute(versions.insert(), [_values(row)])

    def get(self, name: VersionName) -> VersionRow:
        """Raises `NotFound`."""
        with self._database.read() as connection:
            return _get(connection, name)

    def list(self, alias: str | None = None) -> tuple[VersionRow, ...]:
        """By alias and number."""
        query = select(versions).order_by(versions.c.alias, versions.c.number)
        if alias is not None:
            query = query.where(versions.c.alias == alias)
        with self._database.read() as connection:
            return tuple(_version(row) for row in connection.execute(query))

    def set_state(self, change: StateChange) -> VersionRow:
        """Raises `NotFound`, or `Conflict` for a transition that is not in the table."""
        with self._database.write() as connection:
            set_state(connection, change)
            return _get(connection, change.name)


def set_state(connection: Connection, change: StateChange) -> None:
    """Within a transaction of the caller's."""
    old = _get(connection, change.name)
    check_transition(change.name, old.state, change.state)
    reason = change.reason if change.reason is not None else old.reason
    statement = update(versions).where(versions.c.alias == change.name.alias, versions.c.number == change.name.number)
    connection.execute(statement.values(state=change.state.value, reason=reason))


def _get(connection: Connection, name: VersionName) -> VersionRow:
    query = select(versions).where(versions.c.alias == name.alias, versions.c.number == name.number)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"No version {name}; GET /v1/versions lists those there are.", param="version")
    return _version(row)


def _values(row: VersionRow) -> dict[str, Any]:
    names = (column.name for column in versions.columns if column.name not in ("alias", "number"))
    return {name: getattr(row, name) for name in names} | {
        "alias": row.name.alias,
        "number": row.name.number,
        "state": row.state.value,
        "path": str(row.path),
        "metrics": dict(row.metrics),
    }


def _version(row: Row[Any]) -> VersionRow:
    values = dict(row._mapping)
    name = VersionName(values.pop("alias"), values.pop("number"))
    changed = {"state": VersionState(row.state), "path": Path(row.path), "metrics": tuple(row.metrics.items())}
    return VersionRow(name=name, **values | changed)
