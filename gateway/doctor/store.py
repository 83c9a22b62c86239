"""Checks of the database: it opens, has the newest schema, is whole, and time has not run backwards."""

from __future__ import annotations

import shlex
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import gateway.store
from gateway.doctor.context import Context
from gateway.doctor.finding import Finding, fail, ok, warn
from gateway.doctor.rows import connect_read_only, sqlite_file

_INTEGRITY_TIMEOUT_S = 5.0
_STEPS_BETWEEN_LOOKS = 100_000
_CLOCK_SLACK = timedelta(seconds=5)


def check_store(context: Context) -> Finding:
    url = context.config.store.url
    path = sqlite_file(url)
    if context.rows is None:
        shown = path or url.partition("://")[0]
        return fail(
            f"the store ({shown}) cannot be read: {context.rows_fault}", _recover(path) if path else "pg_isready"
        )
    if not context.rows.migration:
        return ok(f"{path} is not made yet; `tandem serve` makes it")
    return ok(f"opens; {len(context.rows.versions)} versions, {len(context.rows.aliases)} aliases")


def check_migration(context: Context) -> Finding:
    """The schema against the newest that this code knows."""
    if context.rows is None or not context.rows.migration:
        return ok("there is no schema to look at")
    known = _known_migrations()
    have, newest = context.rows.migration, known[0]
    if have == newest:
        return ok(f"at the newest, {newest}")
    if have in known:
        return warn(f"at {have}; the next start brings it to {newest}", context.restart)
    return fail(f"{have} is newer than this Tandem, which knows {newest}", "pip install --upgrade tandem-vlm")


def check_integrity(context: Context) -> Finding:
    path = sqlite_file(context.config.store.url)
    if path is None or not path.exists():
        return ok("there is no SQLite file to look at")
    try:
        problems = _integrity(path)
    except sqlite3.DatabaseError as error:
        if "interrupted" not in str(error):
            return fail(f"{path} is damaged: {error}", _recover(path))
        look = f"import sqlite3; print(sqlite3.connect({str(path)!r}).execute('PRAGMA integrity_check').fetchall())"
        return warn(
            f"{path} is too large to be read within {_INTEGRITY_TIMEOUT_S:.0f} s", f"python -c {shlex.quote(look)}"
        )
    return fail(f"{path} is damaged: {problems}", _recover(path)) if problems else ok("every page is whole")


def check_clock(context: Context) -> Finding:
    """Rows are ordered by time: a clock that was set back puts new ones before old ones."""
    newest = context.rows.newest if context.rows else None
    if newest is None:
        return ok("there is no row to compare with")
    ahead = newest - datetime.now(UTC)
    if ahead > _CLOCK_SLACK:
        return warn(
            f"the clock was set back: the newest row is {ahead.total_seconds():.0f} s in the future",
            "sudo timedatectl set-ntp true",
        )
    return ok(f"the newest row is of {newest:%Y-%m-%d %H:%M:%S} UTC")


def _integrity(path: Path) -> str:
    """What SQLite finds wrong; empty if nothing. Interrupted once the time is over."""
    deadline_s = time.monotonic() + _INTEGRITY_TIMEOUT_S
    with closing(connect_read_only(path)) as connection:
        connection.set_progress_handler(lambda: time.monotonic() > deadline_s, _STEPS_BETWEEN_LOOKS)
        found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(3)")]
    return "" if found == ["ok"] else "; ".join(found)


def _known_migrations() -> tuple[str, ...]:
    """Newest first."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(gateway.store.__file__).parent / "migrations"))
    return tuple(script.revision for script in scripts.walk_revisions())


def _recover(path: Path) -> str:
    return f"sqlite3 {shlex.quote(str(path))} .recover | sqlite3 {shlex.quote(f'{path}.recovered')}"
