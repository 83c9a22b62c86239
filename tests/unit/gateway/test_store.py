from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from gateway_stack import version_row
from sqlalchemy import inspect

from engines.errors import ConfigError, Conflict, NotFound
from engines.types import VersionName
from gateway.store import StateChange, Store, Stored, open_store
from gateway.store.database import _MIGRATIONS
from gateway.store.tables import metadata
from gateway.types import TRANSITIONS, Feedback, FeedbackStatus, Interaction, VersionState

BASE, ONE, TWO = VersionName("small", 0), VersionName("vqa", 1), VersionName("vqa", 2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path}/new/folder/tandem.db")
    yield store
    store.close()


def interaction(identity: str) -> Interaction:
    now = datetime.now(UTC)
    return Interaction(identity, now, "vqa", BASE, "small/0", "{}", "yes", "stop", 3, 1, 1.5, 2.5, 200, False, ("ab",))


def signal(identity: str, completion: str, key: str | None = None, body: str = "h") -> Feedback:
    now = datetime.now(UTC)
    return Feedback(identity, completion, "thumb", "true", None, now, FeedbackStatus.ACCEPTED, key, body, (("a", "b"),))


def test_migrations_make_the_tables(store: Store) -> None:
    with store.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_every_migration_has_a_way_back(store: Store) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with store.database.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]


def test_sqlite_is_durable(store: Store, tmp_path: Path) -> None:
    with store.database.write() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_opening_again_finds_what_was_there(store: Store, tmp_path: Path) -> None:
    store.interactions.add_all([interaction("chatcmpl-1")])
    again = open_store(f"sqlite:///{tmp_path}/new/folder/tandem.db")
    assert again.interactions.get("chatcmpl-1").answer == "yes"
    again.close()


@pytest.mark.parametrize("url", ["sqlite://", "nonsense", "sqlite:////proc/none/x.db", "unknown://x"])
def test_url_that_cannot_be_used_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.url"):
        open_store(url)


def test_rows_come_back_as_they_went_in(store: Store) -> None:
    row, said, version = interaction("chatcmpl-1"), signal("fb-1", "chatcmpl-1", "key"), version_row(ONE)
    store.interactions.add_all([row])
    store.feedback.add_all([said])
    store.versions.add(version)
    assert store.interactions.get("chatcmpl-1") == row
    assert store.feedback.of_completions(["chatcmpl-1"]) == (said,)
    assert store.versions.get(ONE) == version


def test_feedback_on_an_unknown_completion_is_not_stored(store: Store) -> None:
    (result,) = store.feedback.add_all([signal("fb-1", "chatcmpl-none")])
    assert isinstance(result, NotFound)
    assert store.feedback.of_completions(["chatcmpl-none"]) == ()


def test_key_is_good_for_one_body(store: Store) -> None:
    store.interactions.add_all([interaction("chatcmpl-1")])
    (first,) = store.feedback.add_all([signal("fb-1", "chatcmpl-1", "key")])
    again, other = store.feedback.add_all(
        [signal("fb-2", "chatcmpl-1", "key"), signal("fb-3", "chatcmpl-1", "key", "other")]
    )
    assert isinstance(first, Stored)
    assert isinstance(again, Stored)
    assert (first.created, again.created, again.row.id) == (True, False, "fb-1")
    assert isinstance(other, Conflict)


def test_numbers_are_never_used_twice(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: store.versions.next_number("vqa"), range(40)))
    assert sorted(numbers) == list(range(1, 41))
    assert store.versions.next_number("other") == 1


@pytest.mark.parametrize("old", VersionState)
def test_only_transitions_of_the_table_are_taken(store: Store, old: VersionState) -> None:
    for number, new in enumerate(VersionState, 1):
        name = VersionName("vqa", number)
        store.versions.add(version_row(name, state=old))
        if new in TRANSITIONS[old]:
            assert store.versions.set_state(StateChange(name, new, "why")).state is new
        else:
            with pytest.raises(Conflict):
                store.versions.set_state(StateChange(name, new))
            assert store.versions.get(name).state is old


def test_alias_begins_at_the_bare_base_and_keeps_its_engine(store: Store) -> None:
    assert store.aliases.ensure("vqa", "small").live == BASE
    assert store.aliases.ensure("vqa", "small").generation == 0
    with pytest.raises(Conflict, match="belongs to engine 'small'"):
        store.aliases.ensure("vqa", "large")


def test_flip_is_all_or_nothing(store: Store) -> None:
    store.aliases.ensure("vqa", "small")
    store.versions.add(version_row(ONE, state=VersionState.VERIFIED))
    with pytest.raises(Conflict, match="cannot become live"):
        store.aliases.flip("vqa", ONE, BASE, 0, [StateChange(ONE, VersionState.LIVE)])
    assert store.aliases.get("vqa").live == BASE
    assert store.aliases.get("vqa").generation == 0
    assert store.aliases.history(ONE) == ()


def test_one_of_two_publishers_wins(store: Store) -> None:
    store.aliases.ensure("vqa", "small")
    outcomes: list[str] = []
    barrier = threading.Barrier(2)

    def flip(version: VersionName) -> None:
        barrier.wait(5)
        try:
            store.aliases.flip("vqa", version, BASE, 0, actor=str(version))
            outcomes.append("won")
        except Conflict:
            outcomes.append("lost")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(flip, [ONE, TWO]))
    assert sorted(outcomes) == ["lost", "won"]
    row = store.aliases.get("vqa")
    (audit,) = store.aliases.history(row.live)
    assert (row.generation, audit.actor, audit.live_before) == (1, str(row.live), BASE)


def test_writers_of_two_processes_wait_for_each_other(store: Store, tmp_path: Path) -> None:
    other = sqlite3.connect(f"{tmp_path}/new/folder/tandem.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(store.versions.next_number, "vqa")
        assert not writing.done()
        other.execute("COMMIT")
        assert writing.result(timeout=15) == 1
    other.close()
