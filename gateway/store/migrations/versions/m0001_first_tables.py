"""Interactions, feedback, versions, aliases and their flips."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_interactions()
    _create_feedback()
    _create_versions()
    _create_aliases()


def downgrade() -> None:
    for table in ("alias_flips", "aliases", "versions", "version_numbers", "feedback", "interactions"):
        op.drop_table(table)


def _create_interactions() -> None:
    op.create_table(
        "interactions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("version", sa.String(80), nullable=False),
        sa.Column("replica", sa.String(80), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("finish_reason", sa.String(32)),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("ttft_ms", sa.Float, nullable=False),
        sa.Column("latency_ms", sa.Float, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("images", sa.JSON, nullable=False),
    )
    op.create_index("interactions_by_alias", "interactions", ["alias", "id"])
    op.create_index("interactions_by_version", "interactions", ["version", "id"])


def _create_feedback() -> None:
    op.create_table(
        "feedback",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("completion_id", sa.String(64), sa.ForeignKey("interactions.id"), nullable=False),
        sa.Column("metric", sa.String(64), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("comment", sa.Text),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("idempotency_key", sa.String(300)),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.UniqueConstraint("idempotency_key", name="feedback_idempotency_key"),
    )
    op.create_index("feedback_by_completion", "feedback", ["completion_id"])
    op.create_index("feedback_by_metric", "feedback", ["metric", "id"])


def _create_versions() -> None:
    op.create_table(
        "version_numbers",
        sa.Column("alias", sa.String(64), primary_key=True),
        sa.Column("last", sa.Integer, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("alias", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("engine", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("base_hash", sa.String(128), nullable=False),
        sa.Column("weights_sha256", sa.String(128), nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("proof", sa.Text, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("parent", sa.String(80)),
        sa.Column("data_hash", sa.String(128)),
        sa.Column("job", sa.Text),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text),
    )


def _create_aliases() -> None:
    op.create_table(
        "aliases",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("engine", sa.String(64), nullable=False),
        sa.Column("live", sa.String(80), nullable=False),
        sa.Column("previous", sa.String(80)),
        sa.Column("generation", sa.Integer, nullable=False),
    )
    op.create_table(
        "alias_flips",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("alias", sa.String(64), sa.ForeignKey("aliases.name"), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("live_before", sa.String(80), nullable=False),
        sa.Column("live_after", sa.String(80), nullable=False),
        sa.UniqueConstraint("alias", "generation", name="alias_flips_generation"),
    )
