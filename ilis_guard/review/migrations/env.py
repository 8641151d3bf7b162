"""Alembic's environment: run all migrations on the connection, and in the transaction, of `Database.migrate`."""

from alembic import context

from ilis_guard.review.schema import REVISION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=REVISION_TABLE
)
context.run_migrations()
