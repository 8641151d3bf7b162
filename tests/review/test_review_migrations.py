"""Tables are brought to this version explicitly, without loss, wholly or not at all."""

import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, inspect, text

from ilis_guard.errors import ReviewError
from ilis_guard.review import ReviewQueue, TicketEvent, migrate
from ilis_guard.review.schema import REVISION, REVISION_TABLE, metadata
from ilis_guard.review.storage import Storage
from ilis_guard.types import Verdict
from tests.processes import die_after_commit, die_after_write, die_before_commit, ended, forked
from tests.reviewing import put

if TYPE_CHECKING:
    from tests.postgresql import Server

MIGRATIONS = Path(__file__).parents[2] / "ilis_guard/review/migrations"
FIXTURES = Path(__file__).parent / "fixtures"
FIRST = (FIXTURES / "revision-0001.sql").read_text("utf-8")
SECOND = (FIXTURES / "revision-0002.sql").read_text("utf-8")
SECOND_IDS = (
    "feb668ca55fe49e5bbc95ead1a7f0d21",
    "db2a0f1d658e4897a54dc74dd240ac1d",
    "436fd35630e94692939553f077ec844a",
)
OPEN, RESOLVED = "45b87ddba6d441a7bfd8d51ab1e648c5", "48850567105c4b38ae0900edafc23c68"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that the first version of ilis_guard made."""
    path = tmp_path / "tickets.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST)
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def nothing(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with nothing in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new.db"
    server: Server = request.getfixturevalue("postgresql")
    return server.new_database()


def check_loses_nothing(url: str) -> None:
    with ReviewQueue(url) as queue:
        assert len(queue.list()) == 2
        waits, ended_ = queue.get(OPEN), queue.get(RESOLVED)
        assert (waits.ticket.state, waits.ticket.version, waits.ticket.priority) == ("open", 1, 0)
        assert (waits.ticket.due_at, waits.overdue, waits.redacted_at) == (None, "expire", None)
        assert waits.request == {
            "messages": [{"role": "user", "content": "Wie heißt die Hauptstadt? 🦆"}],
            "labels": {"vip": True},
        }
        assert (waits.policy, waits.rule, waits.reasons, waits.say) == ("sha256:abc", "unsure", ("because",), "wait")
        assert waits.proposed == "Oslo"
        created = TicketEvent(at=waits.ticket.created_at, what="created", by="", version=1, details={})
        assert waits.history == (created,)
        assert (ended_.ticket.verdict, ended_.ticket.text, ended_.ticket.reason) == (Verdict.CORRECT, "right", "why")
        assert (ended_.ticket.ended_at, ended_.ticket.version, ended_.reviewer) == (1795564466.1926622, 2, "ada")
        assert [(entry.what, entry.by, entry.version) for entry in ended_.history] == [
            ("created", "", 1),
            ("resolved", "ada", 2),
        ]
        assert queue.resolve(OPEN, Verdict.ACCEPT).version == 2


def test_a_file_of_the_first_version_migrates_without_loss(old: Path) -> None:
    url = f"sqlite:///{old}"
    with pytest.raises(ReviewError, match=r"has revision 0001, .* uses 0003; .*run `ilis-guard queue migrate`"):
        ReviewQueue(url)
    assert migrate(url) == ("0001", REVISION)
    check_loses_nothing(url)
    assert migrate(url) == (REVISION, REVISION)
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_tickets_from_before_there_were_samples_were_certain_to_be_reviewed(tmp_path: Path) -> None:
    path = tmp_path / "tickets.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SECOND)
    assert migrate(f"sqlite:///{path}") == ("0002", REVISION)
    with ReviewQueue(f"sqlite:///{path}") as queue:
        records = {record.decision: record for record in map(queue.get, SECOND_IDS)}
        assert {record.probability for record in records.values()} == {1.0}
        assert (records["d1"].ticket.due_at, records["d1"].ticket.priority) == (1795578905.315965, 3)
        assert [entry.what for entry in records["d2"].history] == ["created", "claimed"]
        assert (records["d3"].ticket.verdict, records["d3"].ticket.text) == (Verdict.CORRECT, "2403 °C")
        sampled = put(queue, "d4", probability=0.25)
        assert queue.get(sampled.id).probability == 0.25


def test_a_postgresql_queue_of_the_second_revision_migrates_without_loss(postgresql: "Server") -> None:
    url = postgresql.new_database()
    storage = Storage(url, checked=False)
    config = Config()
    config.set_main_option("script_location", "ilis_guard.review:migrations")
    texts = ("decision", "policy", "say", "queue", "claimed_by", "text", "reason", "reviewer")
    row = dict.fromkeys(texts, "") | {"id": "a" * 32, "overdue": "expire"}
    with storage.writing() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(
            text(
                "INSERT INTO tickets (created_at, priority, version, state, reasons, request, attempts, "
                f"{', '.join(row)}) "
                f"VALUES (1.0, 0, 1, 'open', '[]', '{{}}', '[]', {', '.join(f':{name}' for name in row)})"
            ),
            row,
        )
    storage.close()
    with pytest.raises(ReviewError, match=r"has revision 0002, .* uses 0003; .*run `ilis-guard queue migrate`"):
        ReviewQueue(url)
    assert migrate(url) == ("0002", REVISION)
    with ReviewQueue(url) as queue:
        (waits,) = queue.list()
        assert queue.get(waits.id).probability == 1.0
        assert queue.get(put(queue, "d4", probability=0.25).id).probability == 0.25


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, float("nan")])
def test_the_database_takes_no_probability_that_is_none(nothing: str, probability: float) -> None:
    migrate(nothing)
    with ReviewQueue(nothing) as queue:
        with pytest.raises(ReviewError, match="probability lies above 0 and is at most 1"):
            put(queue, "d", probability=probability)
        ticket = put(queue, "d")
    storage = Storage(nothing)
    with pytest.raises(ReviewError), storage.writing() as connection:
        connection.execute(text("UPDATE tickets SET probability = :p WHERE id = :id"), {"p": 0.0, "id": ticket.id})
    storage.close()


def test_the_first_version_refuses_a_file_of_this_one(old: Path) -> None:
    migrate(f"sqlite:///{old}")
    with closing(sqlite3.connect(old)) as connection:
        # It takes 1 and nothing else.
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


@pytest.mark.parametrize(
    "dies",
    [die_before_commit, *(partial(die_after_write, number) for number in (1, 2, 3, 4))],
    ids=["before the commit", "write 1", "write 2", "write 3", "write 4"],
)
def test_a_killed_migration_changes_nothing(old: Path, dies: Callable[[], None]) -> None:
    def migrate_and_die() -> None:
        dies()
        migrate(f"sqlite:///{old}")

    assert ended(forked(migrate_and_die)) == -signal.SIGKILL
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM tickets").fetchone() == (2,)
    assert migrate(f"sqlite:///{old}") == ("0001", REVISION)
    check_loses_nothing(f"sqlite:///{old}")


@pytest.mark.parametrize("dies", [die_before_commit, die_after_commit])
def test_a_migration_that_is_killed_is_done_again(nothing: str, dies: Callable[[], None]) -> None:
    def migrate_and_die() -> None:
        dies()
        migrate(nothing)

    assert ended(forked(migrate_and_die)) == -signal.SIGKILL
    assert migrate(nothing) == (None if dies is die_before_commit else REVISION, REVISION)
    with ReviewQueue(nothing) as queue:
        assert put(queue, "d").state == "open"


def test_an_error_on_the_way_changes_nothing(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection:
        # What is in the way of the new tables.
        connection.execute("CREATE TABLE history (mine)")
        connection.commit()
    with pytest.raises(ReviewError, match="history already exists"):
        migrate(f"sqlite:///{old}")
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM tickets").fetchone() == (2,)


def test_several_migrate_at_once(nothing: str) -> None:
    children = [forked(partial(migrate, nothing)) for _ in range(4)]
    assert [ended(child) for child in children] == [0] * 4
    assert migrate(nothing) == (REVISION, REVISION)


def test_a_new_database_is_migrated_explicitly_where_it_may_be_shared(nothing: str) -> None:
    if nothing.startswith("sqlite"):
        ReviewQueue(nothing).close()  # a new file is nobody else's
    else:
        with pytest.raises(ReviewError, match="holds no review queue yet; run `ilis-guard queue migrate`"):
            ReviewQueue(nothing)
    assert migrate(nothing)[1] == REVISION


@pytest.mark.parametrize("made_by", ["opening it", "a migration"])
def test_the_tables_are_those_that_the_code_knows(nothing: str, made_by: str) -> None:
    if made_by == "opening it" and nothing.startswith("sqlite"):
        ReviewQueue(nothing).close()
    else:
        migrate(nothing)
    storage = Storage(nothing)
    with storage.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": REVISION_TABLE})
        assert context.get_current_revision() == REVISION
        assert compare_metadata(context, metadata) == []
        for table in metadata.sorted_tables:
            checks = {check["name"] for check in inspect(connection).get_check_constraints(table.name)}
            assert checks == {f"ck_{table.name}_{name}" for name in _checks_of(table.name)}
    storage.close()


def _checks_of(table: str) -> set[str]:
    return {
        str(constraint.name).removeprefix(f"ck_{table}_")
        for constraint in metadata.tables[table].constraints
        if isinstance(constraint, CheckConstraint)
    }


def test_the_newest_step_is_the_one_that_the_code_knows() -> None:
    scripts = ScriptDirectory(str(MIGRATIONS))
    assert scripts.get_heads() == [REVISION]


def test_a_later_revision_is_refused(nothing: str) -> None:
    migrate(nothing)
    storage = Storage(nothing)
    with storage.writing() as connection:
        connection.execute(text(f"UPDATE {REVISION_TABLE} SET version_num = '9999'"))
    storage.close()
    for use in (ReviewQueue, migrate):
        with pytest.raises(ReviewError, match=r"revision 9999, .* uses 0003; install the version that made it"):
            use(nothing)


def test_another_programs_database_is_not_migrated(nothing: str) -> None:
    storage = Storage(nothing, checked=False)
    with storage.writing() as connection:
        connection.execute(text("CREATE TABLE cookies (id INTEGER)"))
    storage.close()
    for use in (ReviewQueue, migrate):
        with pytest.raises(ReviewError, match="belongs to another program; give the review queue one of its own"):
            use(nothing)
