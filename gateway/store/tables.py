"""The tables. A change here needs a migration beside it; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

metadata = MetaData()


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, stored as UTC; SQLite keeps no zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


interactions = Table(
    "interactions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created", UtcDateTime, nullable=False),
    Column("alias", String(64), nullable=False),
    Column("version", String(80), nullable=False),
    Column("replica", String(80), nullable=False),
    Column("request", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("finish_reason", String(32)),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("ttft_ms", Float, nullable=False),
    Column("latency_ms", Float, nullable=False),
    Column("status", Integer, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("images", JSON, nullable=False),
    Index("interactions_by_alias", "alias", "id"),
    Index("interactions_by_version", "version", "id"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("completion_id", String(64), ForeignKey("interactions.id"), nullable=False),
    Column("metric", String(64), nullable=False),
    Column("value", Text, nullable=False),
    Column("comment", Text),
    Column("created", UtcDateTime, nullable=False),
    Column("status", String(16), nullable=False),
    Column("idempotency_key", String(300)),
    Column("body_sha256", String(64), nullable=False),
    Column("tags", JSON, nullable=False),
    # A retried call finds its first answer by this key, also when two retries race.
    UniqueConstraint("idempotency_key", name="feedback_idempotency_key"),
    Index("feedback_by_completion", "completion_id"),
    Index("feedback_by_metric", "metric", "id"),
)

version_numbers = Table(
    "version_numbers",
    metadata,
    Column("alias", String(64), primary_key=True),
    Column("last", Integer, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("alias", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("engine", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("path", Text, nullable=False),
    Column("base_hash", String(128), nullable=False),
    Column("weights_sha256", String(128), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("proof", Text, nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("parent", String(80)),
    Column("data_hash", String(128)),
    Column("job", Text),
    Column("metrics", JSON, nullable=False),
    Column("reason", Text),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("engine", String(64), nullable=False),
    Column("live", String(80), nullable=False),
    Column("previous", String(80)),
    Column("generation", Integer, nullable=False),
)

generations = Table(
    "generations",
    metadata,
    Column("engine", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("model", Text, nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("base_hash", String(128)),
    Column("host", String(64)),
    Column("reason", Text),
    Column("steps", JSON, nullable=False),
)

alias_flips = Table(
    "alias_flips",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("alias", String(64), ForeignKey("aliases.name"), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(32), nullable=False),
    Column("live_before", String(80), nullable=False),
    Column("live_after", String(80), nullable=False),
    UniqueConstraint("alias", "generation", name="alias_flips_generation"),
)
