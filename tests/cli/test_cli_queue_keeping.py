"""`ilis-guard queue`: claims, due times, exports, retention and migrations, on a real database."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.review import ReviewQueue
from ilis_guard.review.schema import REVISION, REVISION_TABLE
from ilis_guard.types import Verdict
from tests.reviewing import put


def beside(config: Path, **how: Any) -> ReviewQueue:
    return ReviewQueue(f"sqlite:///{config.parent}/tickets.db", **how)


def long_ago() -> float:
    return 1_000_000_000.0


def test_a_ticket_is_claimed_by_one_and_released(run: Callable[..., Any], ticket: str) -> None:
    claimed = run("queue", "claim", ticket[:8], "--reviewer", "[u]ada", "--lease", "600")
    assert claimed.status == 0
    assert claimed.out.startswith(f"ticket {ticket[:8]} is claimed by '[u]ada' until 20")
    assert run("queue", "list").out == "no such tickets\n"
    assert "[u]ada" in run("queue", "list", "--state", "claimed").out
    assert ticket[:8] in run("queue", "list", "--reviewer", "[u]ada").out
    assert run("queue", "claim", "--reviewer", "bob").out == "no open tickets\n"

    for arguments in (
        ("claim", ticket, "--reviewer", "bob"),
        ("release", ticket, "--reviewer", "bob"),
        ("resolve", ticket, "reject", "--reviewer", "bob"),
    ):
        refused = run("queue", *arguments)
        assert (refused.status, refused.out) == (2, "")
        assert "claimed by '[u]ada'" in refused.err

    released = run("queue", "release", ticket, "--reviewer", "bob", "--force")
    assert (released.status, released.out) == (0, f"ticket {ticket[:8]} is open\n")
    shown = run("queue", "show", ticket).out
    assert [line.split(" UTC ")[1] for line in shown.splitlines() if " UTC " in line and line.startswith("20")] == [
        "created",
        "claimed by [u]ada",
        "released by bob",
    ]


def test_the_most_urgent_ticket_is_claimed_first(run: Callable[..., Any], config: Path) -> None:
    with beside(config) as queue:
        put(queue, "a")
        urgent = put(queue, "b", priority=9, due=60.0)
        other = put(queue, "c", queue="others")
    claimed = run("queue", "claim", "--reviewer", "ada")
    assert f"ticket {urgent.id[:8]} is claimed" in claimed.out
    assert f"ticket {other.id[:8]} is" in run("queue", "claim", "--reviewer", "ada", "--queue", "others").out
    refused = run("queue", "claim", urgent.id, "--reviewer", "ada", "--queue", "others")
    assert refused.status == 2
    assert "leave out the one or the other" in refused.err


def test_verdict_on_a_named_version_is_checked(run: Callable[..., Any], ticket: str) -> None:
    refused = run("queue", "resolve", ticket, "reject", "--version", "7")
    assert refused.status == 2
    assert "has version 1, and the verdict is on version 7" in refused.err
    assert run("queue", "resolve", ticket, "reject", "--version", "1").status == 0


def test_a_list_in_json_is_the_tickets(run: Callable[..., Any], config: Path) -> None:
    assert run("queue", "list", "--json").json == []
    with beside(config) as queue:
        tickets = [put(queue, f"d{number}", due=3600.0, priority=number) for number in range(3)]
        assert run("queue", "list", "--json", "--limit", "2").json == [
            queue.get(ticket.id).ticket.to_dict() for ticket in tickets[:0:-1]
        ]


def test_counts_and_overdue_tickets(run: Callable[..., Any], config: Path) -> None:
    assert run("queue", "counts").out == "no tickets\n"
    with beside(config, clock=long_ago) as queue:
        expires = put(queue, "a", queue="[i]a[/i]", due=60.0)
        moves = put(queue, "b", due=60.0, overdue="seniors")
    shown = run("queue", "show", moves.id).flat
    assert "due 2001-09-09 01:47 UTC: then it moves to 'seniors'" in shown
    assert "[i]a[/i]" in run("queue", "counts").out
    assert run("queue", "sweep").out == "2 tickets overdue\n"
    assert run("queue", "sweep").out == "0 tickets overdue\n"
    assert expires.id[:8] in run("queue", "list", "--state", "expired").out
    assert "moved to 'seniors'" in run("queue", "show", moves.id).out
    counted = [line.split() for line in run("queue", "counts").out.splitlines() if "seniors" in line]
    assert counted == [["│", "seniors", "│", "1", "│", "0", "│", "0", "│", "0", "│", "0", "│"]]


def test_verdicts_are_exported_as_rows(run: Callable[..., Any], ticket: str) -> None:
    run("queue", "resolve", ticket, "correct", "--text", "no")
    result = run("queue", "export", "--to", "rows.jsonl")
    assert (result.status, result.out) == (0, "1 row in rows.jsonl\n")
    (row,) = [json.loads(line) for line in Path("rows.jsonl").read_text("utf-8").splitlines()]
    assert (row["id"], row["answers"], row["correct"], row["rule"]) == (ticket, ["no"], False, "[u]person")
    assert run("queue", "export", "--to", "none.jsonl", "--queue", "nobody's").out == "0 rows in none.jsonl\n"
    refused = run("queue", "export", "--to", "nowhere/rows.jsonl")
    assert refused.status == 2
    assert "nowhere" in refused.err


def test_old_tickets_are_redacted_and_deleted(run: Callable[..., Any], config: Path) -> None:
    with beside(config, clock=long_ago) as queue:
        old = put(queue, "a")
        queue.resolve(old.id, Verdict.CORRECT, text="2403 °C")
    with beside(config) as queue:
        young = put(queue, "b")
        queue.resolve(young.id, Verdict.ACCEPT)
    assert run("queue", "redact", "--older-than", "30d").out == "1 ticket redacted\n"
    shown = run("queue", "show", old.id).out
    assert "redacted on 20" in shown
    assert "user: [redacted]\n" in shown
    assert "2400" not in shown
    assert "2403" not in shown

    purged = run("queue", "purge", "--older-than", "720h", "--export", "gone.jsonl")
    assert (purged.status, purged.out) == (0, "1 ticket deleted\n")
    assert json.loads(Path("gone.jsonl").read_text("utf-8"))["ticket"]["id"] == old.id
    with beside(config) as queue:
        assert [ticket.id for ticket in queue.list()] == [young.id]
    refused = run("queue", "purge", "--older-than", "0s", "--export", "gone.jsonl")
    assert refused.status == 2
    assert "'gone.jsonl' is already there" in refused.err
    assert run("queue", "purge", "--older-than", "0s").out == "1 ticket deleted\n"


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1.5d", "1w", ""])
@pytest.mark.usefixtures("config")
def test_an_age_is_a_number_and_a_unit(run: Callable[..., Any], age: str) -> None:
    for command in ("redact", "purge"):
        refused = run("queue", command, f"--older-than={age}")
        assert (refused.status, refused.out) == (2, "")
        assert f"such as 30d, got {age!r}" in refused.err


@pytest.mark.parametrize(
    ("revision", "advice"), [("0000", "run `ilis-guard queue migrate`"), ("9999", "install the version that made it")]
)
def test_a_queue_of_another_revision_is_refused(
    run: Callable[..., Any], config: Path, revision: str, advice: str
) -> None:
    beside(config).close()
    with closing(sqlite3.connect(config.parent / "tickets.db")) as connection:
        connection.execute(f"UPDATE {REVISION_TABLE} SET version_num = ?", (revision,))
        connection.commit()
    refused = run("queue", "list")
    assert (refused.status, refused.out) == (2, "")
    assert advice in refused.err


@pytest.mark.usefixtures("config")
def test_a_new_queue_may_be_made_by_a_migration(run: Callable[..., Any]) -> None:
    assert run("queue", "migrate").out == f"revision none -> {REVISION}\n"
    assert run("queue", "migrate").out == f"revision {REVISION}\n"
    assert run("queue", "list").out == "no such tickets\n"
