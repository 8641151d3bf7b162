"""`ilis-guard queue` on a real database."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.review import ReviewQueue
from ilis_guard.types import Attempt, Request, Verdict


def queue_beside(config: Path) -> ReviewQueue:
    return ReviewQueue(f"sqlite:///{config.parent}/tickets.db")


def fill(config: Path, count: int, *, queue: str = "q", text: str = "yes") -> list[str]:
    with queue_beside(config) as tickets:
        return [
            tickets.escalate(
                decision=f"{queue}{number}",
                request=Request.of("?"),
                attempts=[Attempt(tier="small", text=text)],
                queue=queue,
                policy="ff",
                rule="r",
            ).id
            for number in range(count)
        ]


def test_a_ticket_is_listed_shown_and_resolved(run: Callable[..., Any], ticket: str) -> None:
    listed = run("queue", "list")
    assert listed.status == 0
    assert listed.out.startswith("1 ticket ")
    assert ticket[:8] in listed.out
    assert "chemists" in listed.out

    resolved = run(
        "queue", "resolve", ticket[:8], "correct", "--text", "no", "--reason", "[/] it isn't", "--reviewer", "[u]ada"
    )
    assert (resolved.status, resolved.out) == (0, f"ticket {ticket[:8]} resolved: correct\n")

    assert run("queue", "list").out == "no such tickets\n"
    assert ticket[:8] in run("queue", "list", "--state", "resolved").out
    assert ticket[:8] in run("queue", "list", "--state", "all").out
    shown = run("queue", "show", ticket[:8]).out
    assert "verdict: correct by [u]ada\ntext: no\nreason: [/] it isn't\n" in shown
    assert "proposed:" not in shown


def test_queue_show_prints_the_ticket_verbatim(run: Callable[..., Any], ticket: str) -> None:
    shown = run("queue", "show", ticket)
    assert shown.status == 0
    assert shown.out.startswith(f"ticket {ticket}, queue chemists, escalated, open, since ")
    assert "user: [red]Is[/red] 1:100:2 [/] safe? \\[bold]\n" in shown.out
    assert "labels: {'topic': '[i]chemistry[/i]'}\n" in shown.out
    assert "- rule '[u]person' decided: escalate, because it has no condition\n" in shown.out
    assert "message to the caller: A [b]chemist[/b] will write to you.\n" in shown.out
    # The answer that `accept` accepts, though the last attempt has none.
    assert "proposed: [blink]yes[/blink] :smile: \\x1b]0;owned\\x07\\u202egnp\n" in shown.out
    assert "[/]" in shown.out
    assert "\x1b" not in shown.out


def test_a_ticket_without_an_answer_says_so(run: Callable[..., Any], config: Path) -> None:
    (ticket,) = fill(config, 1, text="")
    assert "proposed: no answer that could be accepted" in run("queue", "show", ticket).out
    refused = run("queue", "resolve", ticket, "accept")
    assert (refused.status, refused.out) == (2, "")
    assert "has no answer to accept" in refused.err


def test_json_is_the_whole_record_and_nothing_else(run: Callable[..., Any], config: Path, ticket: str) -> None:
    result = run("queue", "show", ticket[:8], "--json")
    with queue_beside(config) as queue:
        assert result.json == queue.get(ticket).to_dict()
    assert result.err == ""


def test_a_list_says_where_there_are_more(run: Callable[..., Any], config: Path) -> None:
    ids = fill(config, 3)
    all_of_them, some = run("queue", "list", "--limit", "3").out, run("queue", "list", "--limit", "2").out
    assert all_of_them.startswith("3 tickets ")
    assert some.startswith("the oldest 2 tickets; there are more, see --limit ")
    assert [ticket[:8] in some for ticket in ids] == [True, True, False]


def test_a_list_of_one_queue(run: Callable[..., Any], config: Path) -> None:
    (legal,) = fill(config, 1, queue="legal")
    (other,) = fill(config, 1, queue="other")
    listed = run("queue", "list", "--queue", "legal").out
    assert legal[:8] in listed
    assert other[:8] not in listed


@pytest.mark.parametrize("command", [("show",), ("resolve", "accept")])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("0000ffff0000", "no ticket's id starts with '0000ffff0000'"),
        ("abc", "'abc' is too short for a ticket's id"),
        ("[/red]", "no ticket's id starts with '[/red]'"),
    ],
)
def test_a_ticket_that_does_not_exist_is_named(
    run: Callable[..., Any], config: Path, command: tuple[str, ...], given: str, words: str
) -> None:
    fill(config, 1)
    result = run("queue", command[0], given, *command[1:])
    assert (result.status, result.out) == (2, "")
    assert words in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("correct",), "the verdict 'correct' needs the right answer as its text, which is empty"),
        (("accept", "--text", "x"), "the verdict 'accept' takes no text"),
        (("reject", "--text", "x"), "the verdict 'reject' takes no text"),
    ],
)
def test_a_verdict_and_its_text_must_go_together(
    run: Callable[..., Any], config: Path, ticket: str, arguments: tuple[str, ...], words: str
) -> None:
    result = run("queue", "resolve", ticket, *arguments)
    assert (result.status, result.out) == (2, "")
    assert words in result.err
    with queue_beside(config) as queue:
        assert queue.get(ticket).ticket.state == "open"


def test_a_verdict_stands(run: Callable[..., Any], config: Path, ticket: str) -> None:
    assert run("queue", "resolve", ticket, "reject").status == 0
    assert run("queue", "resolve", ticket, "reject").status == 0
    result = run("queue", "resolve", ticket, "accept")
    assert (result.status, result.out) == (2, "")
    assert "already ended with the verdict 'reject'; 'accept' can't replace it" in result.err
    with queue_beside(config) as queue:
        assert queue.get(ticket).ticket.verdict is Verdict.REJECT
