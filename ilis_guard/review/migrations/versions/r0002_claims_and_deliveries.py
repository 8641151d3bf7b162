"""Tickets get a priority, a due time, claims, versions and a history; what endpoints are to hear is kept."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TAKEN_OVER = (
    "id, decision, created_at, policy, rule, rulings, say, request, attempts, queue, state, verdict, text, reason, "
    "reviewer"
)


def upgrade() -> None:
    """Copy the tickets into a table of the new shape; SQLite can't change the checks of an old one."""
    op.drop_index("ix_tickets_state_created_at", "tickets")
    op.rename_table("tickets", "tickets_0001")
    _make_tickets()
    op.execute(
        f"INSERT INTO tickets ({_TAKEN_OVER}, priority, overdue, version, claimed_by, ended_at) "  # noqa: S608 - constants
        f"SELECT {_TAKEN_OVER}, 0, 'expire', CASE state WHEN 'open' THEN 1 ELSE 2 END, '', resolved_at "
        "FROM tickets_0001"
    )
    op.drop_table("tickets_0001")
    _make_history()
    op.execute(
        "INSERT INTO history (ticket, at, what, by, version, details) "
        "SELECT id, created_at, 'created', '', 1, '{}' FROM tickets ORDER BY created_at, id"
    )
    op.execute(
        "INSERT INTO history (ticket, at, what, by, version, details) "
        "SELECT id, ended_at, 'resolved', reviewer, 2, '{}' FROM tickets WHERE state = 'resolved' ORDER BY ended_at, id"
    )
    _make_deliveries()
    op.create_table(
        "endpoints",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("disabled_at", sa.Float),
        sa.Column("next_send_at", sa.Float, nullable=False),
        sa.Column("held_until", sa.Float),
    )


def _make_tickets() -> None:
    op.create_table(
        "tickets",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("decision", sa.String, nullable=False, unique=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("policy", sa.String, nullable=False),
        sa.Column("rule", sa.String),
        sa.Column("rulings", sa.JSON, nullable=False),
        sa.Column("say", sa.Text, nullable=False),
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
        sa.CheckConstraint("state IN ('open', 'resolved', 'expired')", name="state"),
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


def _make_history() -> None:
    op.create_table(
        "history",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("ticket", sa.String(32), sa.ForeignKey("tickets.id"), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("what", sa.String, nullable=False),
        sa.Column("by", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.CheckConstraint(
            "what IN ('created', 'claimed', 'released', 'moved', 'expired', 'resolved', 'redacted')", name="what"
        ),
    )
    op.create_index("ix_history_ticket", "history", ["ticket"])


def _make_deliveries() -> None:
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
