"""Migrations create the tables, wholly or not at all, and refuse databases of other revisions or programs."""

import signal
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, inspect, make_url, text

from ilis_guard.errors import ReviewError
from ilis_guard.review import ReviewQueue, migrate
from ilis_guard.review.database import Database
from ilis_guard.review.postgresql import PostgreSQL
from ilis_guard.review.schema import REVISION, REVISION_TABLE, metadata
from ilis_guard.review.sqlite import SQLite
from tests.processes import die_after_commit, die_after_write, die_before_commit, ended, forked
from tests.reviewing import put

if TYPE_CHECKING:
    from tests.postgresql import Server

MIGRATIONS = Path(__file__).parents[2] / "ilis_guard/review/migrations"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with nothing in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new.db"
    server: Server = request.getfixturevalue("postgresql")
    return server.new_database()


def unchecked(url: str) -> Database:
    """A database whose tables nobody has checked."""
    return SQLite(make_url(url)) if url.startswith("sqlite") else PostgreSQL(make_url(url))


def execute(url: str, *statements: str) -> None:
    with closing(unchecked(url)) as database, database.writing() as connection:
        for statement in statements:
            connection.execute(text(statement))


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, float("nan")])
def test_an_invalid_probability_is_refused(empty: str, probability: float) -> None:
    migrate(empty)
    with ReviewQueue(empty) as queue:
        with pytest.raises(ReviewError, match="probability lies above 0 and is at most 1"):
            put(queue, "d", probability=probability)
        put(queue, "d")
    with pytest.raises(ReviewError):
        execute(empty, "UPDATE tickets SET probability = 0.0")


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    "dies",
    [die_before_commit, partial(die_after_write, 1), die_after_commit],
    ids=["before the commit", "after the first write", "after the commit"],
)
def test_a_killed_migration_can_be_repeated(empty: str, dies: Callable[[], None]) -> None:
    def migrate_and_die() -> None:
        dies()
        migrate(empty)

    assert ended(forked(migrate_and_die)) == -signal.SIGKILL
    assert migrate(empty) == (REVISION if dies is die_after_commit else None, REVISION)
    with ReviewQueue(empty) as queue:
        assert put(queue, "d").state == "open"


@pytest.mark.usefixtures("process")
def test_several_processes_migrate_at_once(empty: str) -> None:
    children = [forked(partial(migrate, empty)) for _ in range(4)]
    assert [ended(child) for child in children] == [0] * 4
    assert migrate(empty) == (REVISION, REVISION)


@pytest.mark.usefixtures("process")
def test_several_processes_open_a_new_queue_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    children = [forked(lambda name=name: put(ReviewQueue(url), name)) for name in "abcd"]  # type: ignore[misc]
    assert [ended(child) for child in children] == [0] * 4
    with ReviewQueue(url) as queue:
        assert len(queue.list()) == 4


def test_only_a_migration_creates_tables_in_a_shared_database(empty: str) -> None:
    if empty.startswith("sqlite"):
        ReviewQueue(empty).close()  # a new file is nobody else's
    else:
        with pytest.raises(ReviewError, match="holds no review queue yet; run `ilis-guard queue migrate`"):
            ReviewQueue(empty)
    assert migrate(empty)[1] == REVISION


@pytest.mark.parametrize("created_by", ["opening", "a migration"])
def test_tables_match_the_schema(empty: str, created_by: str) -> None:
    if created_by == "opening" and empty.startswith("sqlite"):
        ReviewQueue(empty).close()
    else:
        migrate(empty)
    with closing(unchecked(empty)) as database, database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": REVISION_TABLE})
        assert context.get_current_revision() == REVISION
        assert compare_metadata(context, metadata) == []
        for table in metadata.sorted_tables:
            checks = {check["name"] for check in inspect(connection).get_check_constraints(table.name)}
            assert checks == {f"ck_{table.name}_{name}" for name in _checks_of(table.name)}


def _checks_of(table: str) -> set[str]:
    return {
        str(constraint.name).removeprefix(f"ck_{table}_")
        for constraint in metadata.tables[table].constraints
        if isinstance(constraint, CheckConstraint)
    }


def test_the_newest_migration_has_the_schemas_revision() -> None:
    scripts = ScriptDirectory(str(MIGRATIONS))
    assert scripts.get_heads() == [REVISION]


def test_an_older_revision_must_be_migrated(empty: str) -> None:
    migrate(empty)
    execute(empty, f"UPDATE {REVISION_TABLE} SET version_num = '0000'")
    with pytest.raises(ReviewError, match=rf"revision 0000, .* uses {REVISION}; .*run `ilis-guard queue migrate`"):
        ReviewQueue(empty)


def test_a_later_revision_is_refused(empty: str) -> None:
    migrate(empty)
    execute(empty, f"UPDATE {REVISION_TABLE} SET version_num = '9999'")
    for use in (ReviewQueue, migrate):
        with pytest.raises(ReviewError, match=rf"revision 9999, .* uses {REVISION}; install the version that made it"):
            use(empty)


def test_another_programs_database_is_not_migrated(empty: str) -> None:
    execute(empty, "CREATE TABLE cookies (id INTEGER)")
    for use in (ReviewQueue, migrate):
        with pytest.raises(ReviewError, match="belongs to another program; give the review queue one of its own"):
            use(empty)


def test_an_error_during_a_migration_changes_nothing(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ReviewError("the last step failed")

    for database in (SQLite, PostgreSQL):
        monkeypatch.setattr(database, "_mark", fail)
    with pytest.raises(ReviewError, match="the last step failed"):
        migrate(empty)
    assert _tables(empty) == []


def _tables(url: str) -> list[str]:
    with closing(unchecked(url)) as database, database.reading() as connection:
        return sorted(inspect(connection).get_table_names())
