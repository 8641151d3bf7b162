"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables."""
    _create_tickets()
    _create_decisions()
    _create_history()
    _create_deliveries()
    op.create_table(
        "endpoints",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("disabled_at", sa.Float),
        sa.Column("next_send_at", sa.Float, nullable=False),
        sa.Column("held_until", sa.Float),
    )
    op.create_table(
        "probes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
    )


def _create_tickets() -> None:
    op.create_table(
        "tickets",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("decision", sa.String, nullable=False, unique=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("policy", sa.String, nullable=False),
        sa.Column("rule", sa.String),
        sa.Column("rulings", sa.JSON, nullable=False),
        sa.Column("say", sa.Text, nullable=False),
        sa.Column("probability", sa.Float, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("attempts", sa.JSON, nullable=False),
        sa.Column("queue", sa.String, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("due_at", sa.Float),
        sa.Column("overdue", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("claimed_by", sa.String, nullable=False),
        sa.Column("claimed_until", sa.Float),
        sa.Column("verdict", sa.String),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("reviewer", sa.String, nullable=False),
        sa.Column("ended_at", sa.Float),
        sa.Column("redacted_at", sa.Float),
        sa.CheckConstraint("kind IN ('escalated', 'audited')", name="kind"),
        sa.CheckConstraint("state IN ('open', 'resolved', 'expired')", name="state"),
        sa.CheckConstraint("probability > 0 AND probability <= 1", name="probability"),
        sa.CheckConstraint("verdict IN ('accept', 'correct', 'reject')", name="verdict"),
        sa.CheckConstraint("(state = 'resolved') = (verdict IS NOT NULL)", name="resolved_by_verdict"),
        sa.CheckConstraint("(state = 'open') = (ended_at IS NULL)", name="ended_or_open"),
        sa.CheckConstraint("(claimed_by = '') = (claimed_until IS NULL)", name="claimed_by_somebody"),
        sa.CheckConstraint("state = 'open' OR claimed_until IS NULL", name="ended_is_unclaimed"),
    )
    op.create_index("ix_tickets_state_priority_created_at", "tickets", ["state", "priority", "created_at"])
    op.create_index("ix_tickets_state_due_at", "tickets", ["state", "due_at"])
    op.create_index("ix_tickets_state_ended_at", "tickets", ["state", "ended_at"])
    op.create_index(
        "ix_tickets_queue_state_claimed_until_due_at", "tickets", ["queue", "state", "claimed_until", "due_at"]
    )


def _create_decisions() -> None:
    op.create_table(
        "decisions",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("decision", sa.JSON, nullable=False),
    )
    op.create_index("ix_decisions_created_at", "decisions", ["created_at"])


def _create_history() -> None:
    op.create_table(
        "history",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("ticket", sa.String(32), sa.ForeignKey("tickets.id"), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("type", sa.String, nullable=False),
        sa.Column("by", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.CheckConstraint(
            "type IN ('created', 'claimed', 'released', 'moved', 'expired', 'resolved', 'redacted')", name="type"
        ),
    )
    op.create_index("ix_history_ticket", "history", ["ticket"])


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("ticket", sa.String(32), sa.ForeignKey("tickets.id"), nullable=False),
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("event", sa.String, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("next_try_at", sa.Float, nullable=False),
        sa.Column("last_try_at", sa.Float),
        sa.Column("last_status", sa.Integer),
        sa.Column("last_error", sa.Text, nullable=False),
        sa.Column("leased_by", sa.String, nullable=False),
        sa.Column("leased_until", sa.Float),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'exhausted', 'disabled')", name="state"),
    )
    op.create_index("ix_deliveries_ticket", "deliveries", ["ticket"])
    op.create_index("ix_deliveries_state_endpoint_next_try_at", "deliveries", ["state", "endpoint", "next_try_at"])
