"""Feedback: one signal about one completion, stored exactly once however often it is sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select
from sqlalchemy.exc import IntegrityError

from engines.errors import Conflict, NotFound
from gateway.store.database import Database
from gateway.store.interactions import unknown_completion
from gateway.store.tables import feedback, interactions
from gateway.types import Feedback, FeedbackStatus


@dataclass(frozen=True, slots=True)
class Stored:
    """A committed row; `created` is False where an earlier call with the same key and body had stored it."""

    row: Feedback
    created: bool


class FeedbackRows:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add_all(self, rows: Sequence[Feedback]) -> tuple[Stored | NotFound | Conflict, ...]:
        """One transaction, a result for each row in order; a row that fails leaves the others alone.

        Returns after the commit. `NotFound`: no such completion; `Conflict`: the key came with another body.
        """
        with self._database.write() as connection:
            return tuple(_add(connection, row) for row in rows)

    def of_completions(self, completion_ids: Sequence[str]) -> tuple[Feedback, ...]:
        """In the order they came."""
        query = select(feedback).where(feedback.c.completion_id.in_(completion_ids)).order_by(feedback.c.id)
        with self._database.read() as connection:
            return tuple(_feedback(row) for row in connection.execute(query))

    def of_metric(self, metric: str) -> tuple[Feedback, ...]:
        """All accepted feedback of one metric, oldest first."""
        query = select(feedback).where(feedback.c.metric == metric, feedback.c.status == FeedbackStatus.ACCEPTED.value)
        with self._database.read() as connection:
            return tuple(_feedback(row) for row in connection.execute(query.order_by(feedback.c.id)))


def _add(connection: Connection, row: Feedback) -> Stored | NotFound | Conflict:
    earlier = _find(connection, row.idempotency_key)
    if earlier is not None:
        return _same_or_conflict(earlier, row)
    for completion_id, param in _named(row):
        if connection.execute(select(interactions.c.id).where(interactions.c.id == completion_id)).first() is None:
            return unknown_completion(completion_id, param)
    try:
        with connection.begin_nested():
            connection.execute(feedback.insert(), [_values(row)])
    except IntegrityError:
        # Another gateway over the same database was faster with this key.
        earlier = _find(connection, row.idempotency_key)
        if earlier is None:
            raise
        return _same_or_conflict(earlier, row)
    return Stored(row, created=True)


def _named(row: Feedback) -> list[tuple[str, str]]:
    named = [(row.completion_id, "completion_id")]
    if row.metric == "preference":
        named.append((json.loads(row.value), "value"))
    return named


def _find(connection: Connection, key: str | None) -> Feedback | None:
    if key is None:
        return None
    row = connection.execute(select(feedback).where(feedback.c.idempotency_key == key)).one_or_none()
    return None if row is None else _feedback(row)


def _same_or_conflict(earlier: Feedback, row: Feedback) -> Stored | Conflict:
    if earlier.body_sha256 == row.body_sha256:
        return Stored(earlier, created=False)
    return Conflict(
        "This Idempotency-Key was used with another body; use a new key for new feedback.", param="Idempotency-Key"
    )


def _values(row: Feedback) -> dict[str, Any]:
    names = (column.name for column in feedback.columns)
    return {name: getattr(row, name) for name in names} | {"status": row.status.value, "tags": dict(row.tags)}


def _feedback(row: Row[Any]) -> Feedback:
    values = dict(row._mapping)
    return Feedback(**values | {"status": FeedbackStatus(row.status), "tags": tuple(row.tags.items())})
