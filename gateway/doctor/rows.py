"""The store, opened for reading only: the doctor makes no file, migrates nothing and takes no lock."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from engines.errors import TandemError
from gateway.store import Aliases, Database, Versions
from gateway.store.tables import alias_flips, interactions, versions
from gateway.types import AliasRow, VersionRow

_BUSY_TIMEOUT_S = 3.0


class StoreFault(TandemError):
    """The store's rows cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What the store says of versions. `migration` is "" and `newest` None in a store that is not made yet."""

    migration: str = ""
    versions: tuple[VersionRow, ...] = ()
    aliases: tuple[AliasRow, ...] = ()
    newest: datetime | None = None


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite store; None for another database."""
    parsed = make_url(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def connect_read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S)


def read_rows(url: str) -> Rows:
    """Raises `StoreFault`. An SQLite file that is not there yet has no rows."""
    try:
        path = sqlite_file(url)
        if path is not None and not path.exists():
            return Rows()
        engine = _open(url, path)
        try:
            return _read(Database(engine), engine)
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        raise StoreFault(_words_of(error)) from error


def _open(url: str, path: Path | None) -> Engine:
    if path is None:
        return create_engine(url, poolclass=NullPool)
    return create_engine("sqlite://", creator=lambda: connect_read_only(path), poolclass=NullPool)


def _read(database: Database, engine: Engine) -> Rows:
    with engine.connect() as connection:
        migration = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        newest = [
            connection.execute(query.limit(1)).scalar_one_or_none()
            for query in (
                select(interactions.c.created).order_by(interactions.c.id.desc()),
                select(alias_flips.c.at).order_by(alias_flips.c.id.desc()),
                select(versions.c.created).order_by(versions.c.created.desc()),
            )
        ]
    moments = [moment for moment in newest if moment is not None]
    return Rows(
        migration=str(migration),
        versions=Versions(database).list(),
        aliases=Aliases(database).all(),
        newest=max(moments, default=None),
    )


def _words_of(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {str(cause).splitlines()[0]}"
