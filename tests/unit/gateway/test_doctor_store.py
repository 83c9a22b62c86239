"""What the doctor says of the database and of the registry's files: real ones, damaged for the test."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from doctor_context import configured, running, stored
from gateway_stack import version_row
from test_doctor import expect

from engines.adapter.directory import WEIGHTS_FILE
from engines.types import VersionName
from gateway.config import TandemConfig
from gateway.doctor import Context, Level, registry, store, survey
from gateway.doctor.registry import check_registry, check_unfinished
from gateway.doctor.store import check_clock, check_integrity, check_migration, check_store
from gateway.store import StateChange, Store, open_store
from gateway.types import VersionState

ONE, TWO = VersionName("vqa", 1), VersionName("vqa", 2)


@pytest.fixture
def config(tmp_path: Path) -> TandemConfig:
    return configured(tmp_path)


@pytest.fixture
def rows(config: TandemConfig) -> Iterator[Store]:
    opened = open_store(config.store.url)
    opened.aliases.ensure("vqa", "small")
    yield opened
    opened.close()


def database_of(config: TandemConfig) -> Path:
    return config.data / "tandem.db"


def register(rows: Store, config: TandemConfig, name: VersionName, state: VersionState = VersionState.VERIFIED) -> Path:
    """A version whose weights are its name; their path."""
    weights = config.registry_root / str(name) / WEIGHTS_FILE
    weights.parent.mkdir(parents=True)
    weights.write_bytes(str(name).encode())
    digest = hashlib.sha256(str(name).encode()).hexdigest()
    rows.versions.add(replace(version_row(name, weights.parent, state), weights_sha256=digest))
    return weights


def test_a_store_that_is_not_made_yet_is_well_and_stays_unmade(config: TandemConfig) -> None:
    context = survey(config, None, None)
    for check in (check_store, check_migration, check_integrity, check_clock, check_registry, check_unfinished):
        expect(check(context), Level.OK)
    assert not config.data.exists()


def test_a_store_in_use_is_read_beside_its_writer(config: TandemConfig, rows: Store) -> None:
    with rows.database.write():
        context = survey(config, None, None)
        expect(check_store(context), Level.OK, "0 versions, 1 aliases")
        expect(check_integrity(context), Level.OK, "whole")


def test_a_file_that_is_no_database_is_said(config: TandemConfig) -> None:
    config.data.mkdir()
    database_of(config).write_bytes(b"no database at all" * 1000)
    context = survey(config, None, None)
    expect(check_store(context), Level.FAIL, "not a database", "sqlite3 ")
    expect(check_integrity(context), Level.FAIL, "is damaged", ".recover")
    expect(check_registry(context), Level.OK, "no rows to look at")
    expect(check_unfinished(context), Level.OK, "no rows to look at")


def test_a_damaged_page_is_found(config: TandemConfig, rows: Store) -> None:
    expect(check_integrity(stored(config)), Level.OK)
    rows.close()
    path = database_of(config)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page_bytes, num_pages = (connection.execute(f"PRAGMA {n}").fetchone()[0] for n in ("page_size", "page_count"))
    with path.open("r+b") as file:
        file.seek(page_bytes * (num_pages // 2))
        file.write(b"\xff" * page_bytes)
    expect(check_integrity(Context(config)), Level.FAIL, "is damaged", ".recover")


def test_a_database_too_large_to_be_read_at_once_is_left_to_the_operator(
    config: TandemConfig, rows: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_INTEGRITY_TIMEOUT_S", -1.0)
    monkeypatch.setattr(store, "_STEPS_BETWEEN_LOOKS", 1)
    expect(check_integrity(stored(config)), Level.WARN, "too large", "integrity_check")


def test_a_schema_is_compared_with_the_newest_known(
    config: TandemConfig, rows: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = stored(config)
    expect(check_migration(context), Level.OK)
    assert context.rows is not None
    newer = replace(context, rows=replace(context.rows, migration="9999"))
    expect(check_migration(newer), Level.FAIL, "9999 is newer", "upgrade")
    monkeypatch.setattr(store, "_known_migrations", lambda: ("9998", context.rows.migration))
    expect(check_migration(context), Level.WARN, "brings it to 9998", "tandem stop")


def test_a_clock_that_was_set_back_is_noticed(config: TandemConfig, rows: Store) -> None:
    expect(check_clock(stored(config)), Level.OK, "no row")
    rows.versions.add(replace(version_row(ONE), created=datetime.now(UTC) - timedelta(hours=1)))
    expect(check_clock(stored(config)), Level.OK, "newest row")
    rows.versions.add(replace(version_row(TWO), created=datetime.now(UTC) + timedelta(hours=1)))
    expect(check_clock(stored(config)), Level.WARN, "in the future", "timedatectl")


def test_versions_have_their_files_and_named_ones_their_bytes(config: TandemConfig, rows: Store) -> None:
    live, retired = register(rows, config, ONE, VersionState.LIVE), register(rows, config, TWO, VersionState.RETIRED)
    base = VersionName("small", 0)
    rows.aliases.flip("vqa", ONE, base, 0)
    expect(check_registry(stored(config)), Level.OK, "2 versions have their files; 1 were read")
    retired.write_bytes(b"other")  # nobody names it: its bytes are read when it is promoted
    expect(check_registry(stored(config)), Level.OK)
    retired.unlink()
    expect(check_registry(stored(config)), Level.WARN, "vqa@2 has no", "versions ls")
    live.write_bytes(b"other")
    expect(check_registry(stored(config)), Level.FAIL, "is not what was registered as vqa@1", "versions rollback vqa")
    live.unlink()
    expect(check_registry(stored(config)), Level.FAIL, "vqa@1 has no", "versions rollback vqa")


def test_a_previous_version_counts_as_named(config: TandemConfig, rows: Store) -> None:
    register(rows, config, ONE, VersionState.STANDBY).unlink()
    rows.aliases.flip("vqa", VersionName("small", 0), ONE, 0)
    expect(check_registry(stored(config)), Level.FAIL, "vqa@1")


@pytest.mark.parametrize("state", [VersionState.STAGED, VersionState.PROBED])
def test_a_version_left_half_published_is_said(
    config: TandemConfig, rows: Store, state: VersionState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_LOOK_AGAIN_S", 0.3)
    register(rows, config, ONE, state)
    expect(check_unfinished(stored(config)), Level.WARN, "vqa@1", "tandem serve")
    served = stored(config, running=running(config), gateway_pid=1)
    expect(check_unfinished(served), Level.WARN, "vqa@1", "tandem versions promote vqa@1")


def test_a_publish_under_way_is_not_taken_for_one_left_behind(config: TandemConfig, rows: Store) -> None:
    register(rows, config, ONE, VersionState.PROBED)
    context = stored(config, running=running(config), gateway_pid=1)
    rows.versions.set_state(StateChange(ONE, VersionState.LIVE))
    expect(check_unfinished(context), Level.OK)
