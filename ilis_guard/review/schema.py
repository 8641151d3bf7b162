"""The tables of the review queue, as SQLAlchemy Core sees them."""

from typing import Final

from sqlalchemy import JSON, CheckConstraint, Column, Float, Index, MetaData, String, Table, Text

SCHEMA_VERSION: Final = 1
"""Raised whenever a table changes."""

metadata: Final = MetaData()

tickets: Final = Table(
    "tickets",
    metadata,
    Column("id", String(32), primary_key=True),
    # What was escalated. A decision is escalated once, however often its caller tries.
    Column("decision", String, nullable=False, unique=True),
    Column("queue", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("policy", String, nullable=False),
    Column("rule", String),
    Column("reasons", JSON, nullable=False),
    Column("say", Text, nullable=False),
    Column("request", JSON, nullable=False),
    Column("attempts", JSON, nullable=False),
    # What became of it.
    Column("state", String, nullable=False),
    Column("verdict", String),
    Column("text", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("reviewer", String, nullable=False),
    Column("resolved_at", Float),
    CheckConstraint("state IN ('open', 'resolved')", name="ck_tickets_state"),
    CheckConstraint("verdict IN ('accept', 'correct', 'reject')", name="ck_tickets_verdict"),
    CheckConstraint(
        "(state = 'resolved') = (verdict IS NOT NULL) AND (state = 'resolved') = (resolved_at IS NOT NULL)",
        name="ck_tickets_resolved_by_verdict",
    ),
)

# Reviewers ask for the oldest open tickets. The index spares reading the signatures of every other row.
Index("ix_tickets_state_created_at", tickets.c.state, tickets.c.created_at)
