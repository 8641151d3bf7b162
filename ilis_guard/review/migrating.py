"""From the tables that are there to those of this version."""

from sqlalchemy import Connection, text

from ilis_guard.review.schema import REVISION, REVISION_TABLE, metadata


def make_tables(connection: Connection) -> None:
    """Make the tables of this version where there are none, and write down their revision."""
    metadata.create_all(connection, checkfirst=False)
    connection.execute(text(f"CREATE TABLE {REVISION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    _write_down(connection, REVISION)


def upgrade(connection: Connection, revision: str | None) -> None:
    """Take every step from a revision to the newest, inside the connection's transaction.

    Args:
        connection: in a transaction.
        revision: what the tables have; None where there are none.
    """
    # Only whoever migrates waits for alembic to be imported.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "ilis_guard.review:migrations")
    config.attributes["connection"] = connection
    if revision is not None:
        # A file from before revisions were written down.
        command.stamp(config, revision)
    command.upgrade(config, "head")


def _write_down(connection: Connection, revision: str) -> None:
    # The table's name is a constant.
    connection.execute(text(f"INSERT INTO {REVISION_TABLE} VALUES (:revision)"), {"revision": revision})  # noqa: S608
