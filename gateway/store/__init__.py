"""The store: every row of Tandem, one file a noun. `open_store` opens the database and migrates it."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.store.aliases import Aliases, AliasFlip
from gateway.store.database import Database, open_database
from gateway.store.feedback import FeedbackRows, Stored
from gateway.store.generations import Generations
from gateway.store.interactions import InteractionPage, InteractionQuery, Interactions
from gateway.store.versions import StateChange, Versions

__all__ = [
    "AliasFlip",
    "Aliases",
    "Database",
    "FeedbackRows",
    "Generations",
    "InteractionPage",
    "InteractionQuery",
    "Interactions",
    "StateChange",
    "Store",
    "Stored",
    "Versions",
    "open_store",
]


@dataclass(frozen=True, slots=True)
class Store:
    """The nouns over one database. Safe to use from any thread; blocking, so never from the event loop."""

    database: Database
    interactions: Interactions
    feedback: FeedbackRows
    versions: Versions
    aliases: Aliases
    generations: Generations

    def close(self) -> None:
        self.database.close()


def open_store(url: str) -> Store:
    """Raises `ConfigError` for a URL that cannot be used."""
    database = open_database(url)
    return Store(
        database,
        Interactions(database),
        FeedbackRows(database),
        Versions(database),
        Aliases(database),
        Generations(database),
    )
