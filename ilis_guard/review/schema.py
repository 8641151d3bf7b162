"""The tables of the review queue, as SQLAlchemy Core sees them at this version of ilis_guard."""

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

REVISION: Final = "0003"
"""Of these tables: the newest one in ``migrations/versions``."""
REVISION_TABLE: Final = "ilis_guard_revision"
"""Where a database says which revision it has. The name tells our databases from other programs'."""

metadata: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

tickets: Final = Table(
    "tickets",
    metadata,
    Column("id", String(32), primary_key=True),
    # What was escalated. A decision is escalated once, however often its caller tries.
    Column("decision", String, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("policy", String, nullable=False),
    Column("rule", String),
    Column("rulings", JSON, nullable=False),
    Column("say", Text, nullable=False),
    # How likely a request like this was to get a ticket: below 1 where a policy draws a sample. Whoever counts over
    # tickets weighs each by its inverse. The default is for tickets from before there was one.
    Column("probability", Float, nullable=False, server_default="1.0"),
    Column("request", JSON, nullable=False),
    Column("attempts", JSON, nullable=False),
    # Where it waits, and until when. `overdue` is what then becomes of it: `expire`, or the queue it moves to.
    Column("queue", String, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("due_at", Float),
    Column("overdue", String, nullable=False),
    # How it stands. A claim is a lease: a ticket is claimed while `claimed_until` lies ahead, and open again after
    # it, with nobody having to write that down. `version` grows by one with each change that a person should know of.
    Column("kind", String, nullable=False, server_default="escalated"),
    Column("state", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("claimed_by", String, nullable=False),
    Column("claimed_until", Float),
    # How it ended.
    Column("verdict", String),
    Column("text", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("reviewer", String, nullable=False),
    Column("ended_at", Float),
    Column("redacted_at", Float),
    CheckConstraint("state IN ('open', 'resolved', 'expired')", name="state"),
    CheckConstraint("probability > 0 AND probability <= 1", name="probability"),
    CheckConstraint("kind IN ('escalated', 'audited')", name="kind"),
    CheckConstraint("verdict IN ('accept', 'correct', 'reject')", name="verdict"),
    CheckConstraint("(state = 'resolved') = (verdict IS NOT NULL)", name="resolved_by_verdict"),
    CheckConstraint("(state = 'open') = (ended_at IS NULL)", name="ended_or_open"),
    CheckConstraint("(claimed_by = '') = (claimed_until IS NULL)", name="claimed_by_somebody"),
    CheckConstraint("state = 'open' OR claimed_until IS NULL", name="ended_is_unclaimed"),
)

SMALL_COLUMNS: Final = tuple(column for column in tickets.c if column.name not in ("request", "attempts"))
"""What a ticket is without its texts and signatures: enough for all that is done to it, and quick to read."""

# The most urgent open ticket, the overdue ones, and those that ended long ago are found, and all are counted, without
# reading the signatures of every other row.
Index(None, tickets.c.state, tickets.c.priority, tickets.c.created_at)
Index(None, tickets.c.state, tickets.c.due_at)
Index(None, tickets.c.state, tickets.c.ended_at)
Index(None, tickets.c.queue, tickets.c.state, tickets.c.claimed_until, tickets.c.due_at)

history: Final = Table(
    "history",
    metadata,
    # In the order in which it happened, which clocks can't be trusted to tell.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("ticket", String(32), ForeignKey(tickets.c.id), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("what", String, nullable=False),
    Column("by", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("details", JSON, nullable=False),
    CheckConstraint(
        "what IN ('created', 'claimed', 'released', 'moved', 'expired', 'resolved', 'redacted')", name="what"
    ),
)

deliveries: Final = Table(
    "deliveries",
    metadata,
    # The webhook's id, the same on every try: the endpoint's idempotency key.
    Column("id", String(32), primary_key=True),
    Column("ticket", String(32), ForeignKey(tickets.c.id), nullable=False, index=True),
    Column("endpoint", String, nullable=False),
    Column("event", String, nullable=False),
    # The thin payload, as it was true when it happened. No prompt and no answer stands in it.
    Column("data", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    # `exhausted` and `disabled` are dead letters: the tries ran out, or the endpoint wants no more.
    Column("state", String, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_try_at", Float, nullable=False),
    Column("last_try_at", Float),
    Column("last_status", Integer),
    Column("last_error", Text, nullable=False),
    # The worker that has it in hand, and until when, so that no two send it at once.
    Column("leased_by", String, nullable=False),
    Column("leased_until", Float),
    CheckConstraint("state IN ('pending', 'delivered', 'exhausted', 'disabled')", name="state"),
)

# Workers ask for what an endpoint is due; people for dead letters.
Index(None, deliveries.c.state, deliveries.c.endpoint, deliveries.c.next_try_at)

endpoints: Final = Table(
    "endpoints",
    metadata,
    # Only what must be remembered of an endpoint; how it is reached stands in guard.yaml.
    Column("name", String, primary_key=True),
    # Since when nothing is sent to it, because it answered 410 Gone, and until somebody enables it.
    Column("disabled_at", Float),
    # The rate limit that all workers share: the earliest time of the next send.
    Column("next_send_at", Float, nullable=False),
    # Until when it asked to be left alone (Retry-After).
    Column("held_until", Float),
)
