"""The first tables: tickets, open or resolved. SQLite files of this revision say ``PRAGMA user_version = 1``."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "tickets",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("decision", sa.String, nullable=False),
        sa.Column("queue", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("policy", sa.String, nullable=False),
        sa.Column("rule", sa.String),
        sa.Column("rulings", sa.JSON, nullable=False),
        sa.Column("say", sa.Text, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("attempts", sa.JSON, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("verdict", sa.String),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("reviewer", sa.String, nullable=False),
        sa.Column("resolved_at", sa.Float),
        # PostgreSQL has one space of names for the indexes of all tables: these leave the plain names to the next step.
        sa.PrimaryKeyConstraint("id", name="pk_tickets_0001"),
        sa.UniqueConstraint("decision", name="uq_tickets_0001_decision"),
        sa.CheckConstraint("state IN ('open', 'resolved')", name="state"),
        sa.CheckConstraint("verdict IN ('accept', 'correct', 'reject')", name="verdict"),
        sa.CheckConstraint(
            "(state = 'resolved') = (verdict IS NOT NULL) AND (state = 'resolved') = (resolved_at IS NOT NULL)",
            name="resolved_by_verdict",
        ),
    )
    op.create_index("ix_tickets_state_created_at", "tickets", ["state", "created_at"])
