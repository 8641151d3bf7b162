"""Tickets say how likely a request like theirs was to get one."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Until now no policy drew samples: every request that a rule escalated got its ticket."""
    # In one statement with its check, which SQLite can't add to a table later.
    op.execute(
        "ALTER TABLE tickets ADD COLUMN probability FLOAT DEFAULT 1.0 NOT NULL "
        "CONSTRAINT ck_tickets_probability CHECK (probability > 0 AND probability <= 1)"
    )
    op.execute(
        "ALTER TABLE tickets ADD COLUMN kind VARCHAR DEFAULT 'escalated' NOT NULL "
        "CONSTRAINT ck_tickets_kind CHECK (kind IN ('escalated', 'audited'))"
    )
