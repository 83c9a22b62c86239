"""Interactions: what was asked and answered. Ids are uuid7s, so their order is that of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select

from engines.errors import NotFound
from engines.types import VersionName
from gateway.store.database import Database
from gateway.store.tables import feedback, interactions
from gateway.types import Interaction


@dataclass(frozen=True, slots=True)
class InteractionQuery:
    """Which interactions to list: newest first, older than the id `after`."""

    limit: int = 20
    after: str | None = None
    alias: str | None = None
    version: str | None = None
    metric: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class InteractionPage:
    rows: tuple[Interaction, ...]
    has_more: bool


class Interactions:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add_all(self, rows: Sequence[Interaction]) -> None:
        """Commits `rows` together."""
        if rows:
            with self._database.write() as connection:
                connection.execute(interactions.insert(), [_values(row) for row in rows])

    def get(self, completion_id: str) -> Interaction:
        """Raises `NotFound`."""
        with self._database.read() as connection:
            row = connection.execute(select(interactions).where(interactions.c.id == completion_id)).one_or_none()
        if row is None:
            raise unknown_completion(completion_id)
        return _interaction(row)

    def list(self, query: InteractionQuery) -> InteractionPage:
        statement = select(interactions).order_by(interactions.c.id.desc()).limit(query.limit + 1)
        for condition in _conditions(query):
            statement = statement.where(condition)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return InteractionPage(tuple(_interaction(row) for row in rows[: query.limit]), len(rows) > query.limit)


def unknown_completion(completion_id: str, param: str = "completion_id") -> NotFound:
    return NotFound(
        f"No completion '{completion_id[:80]}' is recorded. Use the id of an answer of this gateway; answers asked for "
        "with store=false are not kept.",
        param=param,
    )


def _conditions(query: InteractionQuery) -> list[Any]:
    columns = interactions.c
    conditions: list[Any] = []
    if query.after:
        conditions.append(columns.id < query.after)
    if query.alias:
        conditions.append(columns.alias == query.alias)
    if query.version:
        conditions.append(columns.version == query.version)
    if query.since:
        conditions.append(columns.created >= query.since)
    if query.metric:
        conditions.append(columns.id.in_(select(feedback.c.completion_id).where(feedback.c.metric == query.metric)))
    return conditions


def _values(row: Interaction) -> dict[str, Any]:
    names = (column.name for column in interactions.columns)
    return {name: getattr(row, name) for name in names} | {"version": str(row.version), "images": list(row.images)}


def _interaction(row: Row[Any]) -> Interaction:
    values = dict(row._mapping)
    return Interaction(**values | {"version": VersionName.parse(row.version), "images": tuple(row.images)})
