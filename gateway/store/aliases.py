"""Aliases: which version a public name means. A flip is one transaction, and leaves an audit row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, or_, select, update

from engines.errors import Conflict, NotFound
from engines.types import VersionName
from gateway.generation import engine_of
from gateway.store.database import Database
from gateway.store.tables import alias_flips, aliases
from gateway.store.versions import StateChange, set_state
from gateway.types import AliasRow, VersionState


@dataclass(frozen=True, slots=True)
class AliasFlip:
    """One line of the audit: who made an alias name what, and when."""

    alias: str
    generation: int
    at: datetime
    actor: str
    action: str
    live_before: VersionName
    live_after: VersionName


class Aliases:
    def __init__(self, database: Database) -> None:
        self._database = database

    def ensure(self, name: str, engine: str) -> AliasRow:
        """The alias as it is; created over a bare base, `engine@0`, if new. `engine` is a generation's name.

        Raises `Conflict` if the alias belongs to another engine.
        """
        with self._database.write() as connection:
            row = _find(connection, name)
            if row is None:
                values = {"name": name, "engine": engine, "live": f"{engine}@0", "previous": None, "generation": 0}
                connection.execute(aliases.insert(), [values])
                return _get(connection, name)
        if engine_of(row.engine) != engine_of(engine):
            raise Conflict(
                f"alias '{name}' belongs to engine '{row.engine}', not '{engine}': its versions were trained on that "
                "base; give the new engine a new alias",
                param=f"models.{name}.engine",
            )
        return row

    def get(self, name: str) -> AliasRow:
        """Raises `NotFound`."""
        with self._database.read() as connection:
            return _get(connection, name)

    def all(self) -> tuple[AliasRow, ...]:
        with self._database.read() as connection:
            return tuple(_alias(row) for row in connection.execute(select(aliases).order_by(aliases.c.name)))

    def flip(
        self,
        name: str,
        to: VersionName,
        previous: VersionName | None,
        expected_generation: int,
        changes: Sequence[StateChange] = (),
        *,
        actor: str = "operator",
        action: str = "promote",
    ) -> AliasRow:
        """All of it or nothing: the alias, the states of `changes`, the audit row. Returns the alias as it is then.

        Raises `Conflict` if somebody else flipped since `expected_generation` was read, or for an illegal transition.
        """
        with self._database.write() as connection:
            old = _get(connection, name)
            values = {"live": str(to), "previous": _text(previous), "generation": expected_generation + 1}
            statement = update(aliases).where(aliases.c.name == name, aliases.c.generation == expected_generation)
            if connection.execute(statement.values(values)).rowcount != 1:
                raise Conflict(
                    f"alias '{name}' is at generation {old.generation}, not {expected_generation}: another publisher "
                    "was faster; look at GET /v1/aliases and try again",
                    param="alias",
                )
            for change in changes:
                set_state(connection, change)
            _write_audit(connection, old, to, actor, action)
            return _get(connection, name)

    def history(self, version: VersionName) -> tuple[AliasFlip, ...]:
        """The flips that began or ended a version's time, oldest first."""
        text = str(version)
        query = select(alias_flips).where(or_(alias_flips.c.live_before == text, alias_flips.c.live_after == text))
        with self._database.read() as connection:
            return tuple(_flip(row) for row in connection.execute(query.order_by(alias_flips.c.id)))


def move_to_base(connection: Connection, old: str, new: str) -> tuple[AliasRow, ...]:
    """Within a transaction of the caller's: all aliases of engine `old` name the bare base of engine `new`.

    Nothing of the old base can come back on the new one: what they named is retired, and there is no previous version.
    """
    rows = [_alias(row) for row in connection.execute(select(aliases).where(aliases.c.engine == old))]
    base = VersionName(new, 0)
    for row in rows:
        values = {"engine": new, "live": str(base), "previous": None, "generation": row.generation + 1}
        connection.execute(update(aliases).where(aliases.c.name == row.name).values(values))
        for version in (row.live, row.previous):
            if version is not None and not version.is_base:
                set_state(connection, StateChange(version, VersionState.RETIRED, f"{new} was released"))
        _write_audit(connection, row, base, "operator", "release")
    return tuple(_get(connection, row.name) for row in rows)


def _write_audit(connection: Connection, old: AliasRow, to: VersionName, actor: str, action: str) -> None:
    values = {
        "alias": old.name,
        "generation": old.generation + 1,
        "at": datetime.now(UTC),
        "actor": actor,
        "action": action,
        "live_before": str(old.live),
        "live_after": str(to),
    }
    connection.execute(alias_flips.insert(), [values])


def _find(connection: Connection, name: str) -> AliasRow | None:
    row = connection.execute(select(aliases).where(aliases.c.name == name)).one_or_none()
    return None if row is None else _alias(row)


def _get(connection: Connection, name: str) -> AliasRow:
    row = _find(connection, name)
    if row is None:
        raise NotFound(f"No alias '{name[:80]}'; GET /v1/aliases lists those there are.", param="alias")
    return row


def _text(version: VersionName | None) -> str | None:
    return None if version is None else str(version)


def _alias(row: Row[Any]) -> AliasRow:
    previous = None if row.previous is None else VersionName.parse(row.previous)
    return AliasRow(row.name, row.engine, VersionName.parse(row.live), previous, row.generation)


def _flip(row: Row[Any]) -> AliasFlip:
    before, after = VersionName.parse(row.live_before), VersionName.parse(row.live_after)
    return AliasFlip(row.alias, row.generation, row.at, row.actor, row.action, before, after)
