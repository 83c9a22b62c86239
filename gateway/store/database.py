"""The database: opened, migrated, and read or written in transactions. All that is SQLite's own is here.

SQLite runs with WAL and `synchronous=FULL`: what a transaction has committed survives a kill and a power loss. Writes
take the write lock at their begin (`BEGIN IMMEDIATE`), so a transaction never finds out at its end that it was second.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from engines.errors import ConfigError, Unavailable

_BUSY_TIMEOUT_MS = 10_000
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """Transactions over one engine; safe to use from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(tandem_write=True)
        # One writer at a time in this process: threads then wait in line instead of polling SQLite's lock.
        self._write_lock = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one snapshot."""
        with _translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is durable once the block has ended, and void if it raises."""
        with self._write_lock, _translated(), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()


def open_database(url: str) -> Database:
    """Creates what is missing and migrates to the newest schema. Raises `ConfigError` for a URL that cannot be used."""
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            engine = _open_sqlite(url, parsed.database)
        else:
            engine = create_engine(url, pool_pre_ping=True)
    except (ArgumentError, ImportError) as error:
        raise ConfigError(f"store.url: no database can be opened with it ({type(error).__name__})") from error
    database = Database(engine)
    try:
        _migrate(database)
    except OperationalError as error:
        database.close()
        raise ConfigError("store.url: the database cannot be opened; is its folder writable, its server up?") from error
    return database


def _open_sqlite(url: str, path: str | None) -> Engine:
    if not path or path == ":memory:":
        raise ConfigError("store.url: an SQLite store needs a file, like sqlite:///data/tandem.db")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"store.url: its folder cannot be made ({error.strerror}); name another path") from error
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000, "check_same_thread": False})
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def _set_pragmas(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN comes too late and is deferred; ours is in `_begin`.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("tandem_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _migrate(database: Database) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        if "locked" in str(error.orig) or "busy" in str(error.orig):
            raise Unavailable("The store is busy; retry in a moment.") from error
        raise
