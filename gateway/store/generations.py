"""Generations: which model each engine serves, and served. A flip moves all aliases of an engine in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, select, update

from engines.errors import Conflict, NotFound
from gateway.generation import GenerationRow, GenerationState, check_move
from gateway.store.aliases import move_to_base
from gateway.store.database import Database
from gateway.store.tables import generations
from gateway.types import AliasRow, StepTime


class Generations:
    def __init__(self, database: Database) -> None:
        self._database = database

    def ensure(self, engine: str, model: Path) -> GenerationRow:
        """The live generation of `engine`; generation 1 serves `model`, and is made if there is none."""
        with self._database.write() as connection:
            live = _live(connection, engine)
            if live is None:
                live = GenerationRow(engine, 1, GenerationState.LIVE, model, datetime.now(UTC))
                connection.execute(generations.insert(), [_values(live)])
            elif live.number == 1 and live.model != model:  # the configuration has the word
                live = replace(live, model=model, base_hash=None)
                _save(connection, live)
            return live

    def begin(self, engine: str, model: Path, base_hash: str, host: str | None = None) -> GenerationRow:
        """The next generation, `rolling`; `host`: in the place of which one.

        Raises `Conflict` if another one is on its way, `NotFound` for no engine.
        """
        with self._database.write() as connection:
            rows = _of(connection, engine)
            if not rows:
                raise NotFound(f"No engine '{engine[:80]}'; GET /v1/engines lists those there are.", param="engine")
            if rolling := [row for row in rows if row.state is GenerationState.ROLLING]:
                raise Conflict(f"{rolling[0].name} is being released; wait for its end", param="engine")
            number = rows[-1].number + 1
            row = GenerationRow(engine, number, GenerationState.ROLLING, model, datetime.now(UTC), base_hash, host)
            connection.execute(generations.insert(), [_values(row)])
            return row

    def fail(self, row: GenerationRow, reason: str, steps: Sequence[StepTime] = ()) -> None:
        """Raises `Conflict` unless it is on its way."""
        with self._database.write() as connection:
            now = _get(connection, row)
            check_move(now, GenerationState.FAILED)
            _save(connection, replace(now, state=GenerationState.FAILED, reason=reason, steps=tuple(steps)))

    def flip(self, old: GenerationRow, new: GenerationRow) -> tuple[AliasRow, ...]:
        """All aliases of `old` name the bare base of `new`, and what they named is retired. Returns those aliases.

        Raises `Conflict`, and changes nothing, if one of the two is not what it was taken for.
        """
        with self._database.write() as connection:
            for row, state in ((old, GenerationState.RETIRED), (new, GenerationState.LIVE)):
                now = _get(connection, row)
                check_move(now, state)
                _save(connection, replace(now, state=state))
            return move_to_base(connection, old.name, new.name)

    def note_steps(self, row: GenerationRow, steps: Sequence[StepTime], reason: str | None) -> None:
        """What its release took, and what is wrong though it is live."""
        with self._database.write() as connection:
            _save(connection, replace(_get(connection, row), steps=tuple(steps), reason=reason))

    def list(self) -> tuple[GenerationRow, ...]:
        """By engine and number."""
        query = select(generations).order_by(generations.c.engine, generations.c.number)
        with self._database.read() as connection:
            return tuple(_row(row) for row in connection.execute(query))

    def of(self, engine: str) -> tuple[GenerationRow, ...]:
        """Oldest first. Raises `NotFound` if there are none."""
        rows = tuple(row for row in self.list() if row.engine == engine)
        if not rows:
            raise NotFound(f"No engine '{engine[:80]}'; GET /v1/engines lists those there are.", param="engine")
        return rows


def _live(connection: Connection, engine: str) -> GenerationRow | None:
    return next((row for row in _of(connection, engine) if row.state is GenerationState.LIVE), None)


def _of(connection: Connection, engine: str) -> tuple[GenerationRow, ...]:
    query = select(generations).where(generations.c.engine == engine).order_by(generations.c.number)
    return tuple(_row(row) for row in connection.execute(query))


def _get(connection: Connection, wanted: GenerationRow) -> GenerationRow:
    return next(row for row in _of(connection, wanted.engine) if row.number == wanted.number)


def _save(connection: Connection, row: GenerationRow) -> None:
    where = (generations.c.engine == row.engine, generations.c.number == row.number)
    connection.execute(update(generations).where(*where).values(_values(row)))


def _values(row: GenerationRow) -> dict[str, Any]:
    names = (column.name for column in generations.columns)
    return {name: getattr(row, name) for name in names} | {
        "state": row.state.value,
        "model": str(row.model),
        "steps": [[step.step, step.seconds] for step in row.steps],
    }


def _row(row: Row[Any]) -> GenerationRow:
    changed = {
        "state": GenerationState(row.state),
        "model": Path(row.model),
        "steps": tuple(StepTime(step, seconds) for step, seconds in row.steps),
    }
    return GenerationRow(**dict(row._mapping) | changed)
