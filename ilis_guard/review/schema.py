"""The tables of the review queue in this version of ilis_guard, for SQLAlchemy Core."""

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

REVISION: Final = "0001"
"""Revision of these tables: the newest one in ``migrations/versions``."""
REVISION_TABLE: Final = "ilis_guard_revision"
"""Table that holds the revision. Its name tells our databases from other programs'."""

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
    # One decision has one ticket, however often its caller tries.
    Column("decision", String, nullable=False, unique=True),
    # Why there is a ticket: a rule escalated the request, or an audit sampled an answer that was given.
    Column("kind", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("policy", String, nullable=False),
    Column("rule", String),
    Column("rulings", JSON, nullable=False),
    Column("say", Text, nullable=False),
    # Of such a request's getting a ticket: below 1 where a policy samples. Statistics over tickets weigh each by the
    # inverse.
    Column("probability", Float, nullable=False),
    Column("request", JSON, nullable=False),
    Column("attempts", JSON, nullable=False),
    # Where it waits, and until when. `overdue` says what happens then: `expire`, or the queue that it moves to.
    Column("queue", String, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("due_at", Float),
    Column("overdue", String, nullable=False),
    # A claim is a lease: a ticket is claimed while `claimed_until` lies ahead, and open again after it, without a
    # write. `version` grows by one with each change that a reviewer should know of.
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
    CheckConstraint("kind IN ('escalated', 'audited')", name="kind"),
    CheckConstraint("state IN ('open', 'resolved', 'expired')", name="state"),
    CheckConstraint("probability > 0 AND probability <= 1", name="probability"),
    CheckConstraint("verdict IN ('accept', 'correct', 'reject')", name="verdict"),
    CheckConstraint("(state = 'resolved') = (verdict IS NOT NULL)", name="resolved_by_verdict"),
    CheckConstraint("(state = 'open') = (ended_at IS NULL)", name="ended_or_open"),
    CheckConstraint("(claimed_by = '') = (claimed_until IS NULL)", name="claimed_by_somebody"),
    CheckConstraint("state = 'open' OR claimed_until IS NULL", name="ended_is_unclaimed"),
)

SMALL_COLUMNS: Final = tuple(column for column in tickets.c if column.name not in ("request", "attempts"))
"""All but the request and the attempts, whose signatures are large: enough for every operation on a ticket."""

# Queries for the most urgent open ticket, for overdue ones and for those that ended long ago, and counts, read no
# other row, whose signatures are large.
Index(None, tickets.c.state, tickets.c.priority, tickets.c.created_at)
Index(None, tickets.c.state, tickets.c.due_at)
Index(None, tickets.c.state, tickets.c.ended_at)
Index(None, tickets.c.queue, tickets.c.state, tickets.c.claimed_until, tickets.c.due_at)

decisions: Final = Table(
    "decisions",
    metadata,
    # Those that callers gave an id. Each is made once, and kept for a while for callers that ask again.
    Column("id", String, primary_key=True),
    Column("created_at", Float, nullable=False, index=True),
    # Of the request: the same id with another one is an error.
    Column("digest", String, nullable=False),
    # Without its ticket, which has a row of its own.
    Column("decision", JSON, nullable=False),
)

history: Final = Table(
    "history",
    metadata,
    # The order of events: clocks can't be trusted with it.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("ticket", String(32), ForeignKey(tickets.c.id), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("type", String, nullable=False),
    Column("by", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("details", JSON, nullable=False),
    CheckConstraint(
        "type IN ('created', 'claimed', 'released', 'moved', 'expired', 'resolved', 'redacted')", name="type"
    ),
)

deliveries: Final = Table(
    "deliveries",
    metadata,
    # The webhook's id, the same on every try: an idempotency key for the endpoint.
    Column("id", String(32), primary_key=True),
    Column("ticket", String(32), ForeignKey(tickets.c.id), nullable=False, index=True),
    Column("endpoint", String, nullable=False),
    Column("event", String, nullable=False),
    # The thin payload at the time of the event, without prompts and answers.
    Column("data", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    # `exhausted` and `disabled` are dead letters: the tries ran out, or the endpoint answered 410 Gone.
    Column("state", String, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_try_at", Float, nullable=False),
    Column("last_try_at", Float),
    Column("last_status", Integer),
    Column("last_error", Text, nullable=False),
    # The relay that may send it now, and until when, so that no two send it at once.
    Column("leased_by", String, nullable=False),
    Column("leased_until", Float),
    CheckConstraint("state IN ('pending', 'delivered', 'exhausted', 'disabled')", name="state"),
)

# Relays look for an endpoint's due deliveries, people for dead letters.
Index(None, deliveries.c.state, deliveries.c.endpoint, deliveries.c.next_try_at)

endpoints: Final = Table(
    "endpoints",
    metadata,
    # Only the state that relays share; guard.yaml says how to reach an endpoint.
    Column("name", String, primary_key=True),
    # Set when it answered 410 Gone: nothing is sent to it until somebody enables it.
    Column("disabled_at", Float),
    # The rate limit that all relays share: the earliest time of the next send.
    Column("next_send_at", Float, nullable=False),
    # Until when it asked for no requests (Retry-After).
    Column("held_until", Float),
)

probes: Final = Table(
    "probes",
    metadata,
    # One row, which every probe changes: a database that can only be read isn't ready.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
)
