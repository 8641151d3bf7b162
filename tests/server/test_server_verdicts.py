"""Verdicts from other tools: who may send them, what they may say, and what is answered."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ilis_guard.config.review import PageSettings
from ilis_guard.errors import ConfigError
from ilis_guard.review import ReviewQueue
from ilis_guard.review.signing import sign
from ilis_guard.types import Request, Ticket, Verdict
from tests.server.conftest import Ask, Start
from tests.server.website import SECRET, Clock, Site

OTHER_SECRET = "whsec_" + "b3RoZXIhIW90aGVyISFvdGhlciEhb3RoZXIh"


UNSIGNED = "urn:ilis-guard:error:WebhookSignatureError"


class Tool:
    """Another tool that sends verdicts."""

    def __init__(self, site: Site) -> None:
        self._client = site.client()

    def send(
        self,
        ticket: str,
        *,
        secret: str = SECRET,
        at: float | None = None,
        address: str | None = None,
        body: str | None = None,
        headers: Mapping[str, str] | None = None,
        **message: Any,
    ) -> httpx2.Response:
        """Sign a message and send it; tests change what they are about."""
        text = json.dumps({"ticket": ticket} | message) if body is None else body
        signed = sign(secret, id="msg_1", at=time.time() if at is None else at, body=text)
        return self._client.post(
            f"/v1/tickets/{address or ticket}/verdict",
            content=text.encode(),
            headers=signed if headers is None else headers,
        )


@pytest.fixture
def tool(site: Site) -> Tool:
    return Tool(site)


@pytest.fixture
def ticket(ask: Ask) -> Ticket:
    return ask("What is the boiling point of gallium?")


def problem(response: httpx2.Response, status: int, kind: str = "about:blank") -> dict[str, Any]:
    """A response that is a problem of this kind, with an id that the log knows."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = response.json()
    assert (told["status"], told["type"]) == (status, kind)
    assert told["request_id"] == response.headers["x-request-id"]
    return told


def test_a_verdict_ends_the_ticket(tool: Tool, review: ReviewQueue, ticket: Ticket) -> None:
    response = tool.send(ticket.id, verdict="correct", text="2403 °C", reason="handbook", reviewer="zoe", version=1)
    assert response.status_code == 200, response.text
    told = response.json()
    assert (told["id"], told["state"], told["verdict"], told["text"], told["version"]) == (
        ticket.id,
        "resolved",
        "correct",
        "2403 °C",
        2,
    )
    record = review.get(ticket.id)
    assert (record.ticket.verdict, record.ticket.text, record.ticket.reason, record.reviewer) == (
        Verdict.CORRECT,
        "2403 °C",
        "handbook",
        "zoe",
    )


def test_the_same_again_is_answered_alike_and_changes_nothing(tool: Tool, review: ReviewQueue, ticket: Ticket) -> None:
    first = tool.send(ticket.id, verdict="accept", version=1)
    history = review.get(ticket.id).history
    again = tool.send(ticket.id, verdict="accept", version=1)
    assert (again.status_code, again.json()) == (200, first.json())
    assert review.get(ticket.id).history == history


def test_another_verdict_is_a_conflict(tool: Tool, review: ReviewQueue, ticket: Ticket) -> None:
    tool.send(ticket.id, verdict="accept")
    problem(tool.send(ticket.id, verdict="reject"), 409, "urn:ilis-guard:error:TicketResolvedError")
    assert review.get(ticket.id).ticket.verdict is Verdict.ACCEPT


def test_conflicts_are_told_apart(tool: Tool, review: ReviewQueue, ticket: Ticket, clock: Clock) -> None:
    problem(tool.send(ticket.id, verdict="accept", version=7), 409, "urn:ilis-guard:error:TicketChangedError")
    review.claim(ticket.id, reviewer="ana")
    problem(tool.send(ticket.id, verdict="accept", reviewer="z"), 409, "urn:ilis-guard:error:TicketClaimedError")
    assert tool.send(ticket.id, verdict="accept", reviewer="ana").status_code == 200
    late = review.escalate(
        decision="late",
        request=Request.of("q"),
        attempts=[],
        queue="urgent",
        policy="p",
        rule=None,
    )
    clock.now += 601
    assert review.sweep() == 1
    problem(tool.send(late.id, verdict="reject"), 409, "urn:ilis-guard:error:TicketExpiredError")


@pytest.mark.parametrize("seconds", [-301, 301])
def test_old_signatures_are_refused(tool: Tool, review: ReviewQueue, ticket: Ticket, seconds: float) -> None:
    problem(tool.send(ticket.id, verdict="accept", at=time.time() + seconds), 401, UNSIGNED)
    assert review.get(ticket.id).ticket.state == "open"
    assert tool.send(ticket.id, verdict="accept", at=time.time() + seconds * 0.9).status_code == 200


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: {},
        lambda headers: {name: value for name, value in headers.items() if name != "webhook-signature"},
        lambda headers: headers | {"webhook-id": "msg_2"},
        lambda headers: headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)},
        lambda headers: headers | {"webhook-timestamp": "soon"},
        lambda headers: headers | {"webhook-signature": "v1,"},
        lambda headers: headers | {"webhook-signature": "nonsense"},
    ],
)
def test_unsigned_messages_are_refused(
    tool: Tool,
    review: ReviewQueue,
    ticket: Ticket,
    spoil: Callable[[dict[str, str]], dict[str, str]],
    logged: list[Any],
) -> None:
    body = json.dumps({"ticket": ticket.id, "verdict": "accept"})
    headers = sign(SECRET, id="msg_1", at=time.time(), body=body)
    told = problem(tool.send(ticket.id, body=body, headers=spoil(headers)), 401, UNSIGNED)
    # What exactly was wrong is for the log.
    assert told["detail"] == "The signature is missing, wrong or too old."
    assert [(one["request"], one["error"]) for one in logged if one["event"] == "ilis_guard.request.failed"] == [
        (told["request_id"], "WebhookSignatureError")
    ]
    assert review.get(ticket.id).ticket.state == "open"


def test_another_secret_or_another_body_is_refused(tool: Tool, review: ReviewQueue, ticket: Ticket) -> None:
    problem(tool.send(ticket.id, verdict="accept", secret=OTHER_SECRET), 401, UNSIGNED)
    headers = sign(SECRET, id="msg_1", at=time.time(), body=json.dumps({"ticket": ticket.id, "verdict": "accept"}))
    problem(tool.send(ticket.id, verdict="reject", headers=headers), 401, UNSIGNED)
    assert review.get(ticket.id).ticket.state == "open"


def test_a_verdict_on_one_ticket_can_not_be_sent_on_to_another(
    tool: Tool, review: ReviewQueue, ticket: Ticket, ask: Ask
) -> None:
    other = ask("What is the melting point of gallium?")
    told = problem(tool.send(ticket.id, verdict="accept", address=other.id), 400, "urn:ilis-guard:error:ReviewError")
    assert "another one's address" in told["detail"]
    assert [review.get(one.id).ticket.state for one in (ticket, other)] == ["open", "open"]


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        ({"verdict": "maybe"}, "missing or invalid: verdict"),
        ({}, "missing or invalid: verdict"),
        ({"verdict": "accept", "colour": "red"}, "missing or invalid: colour"),
        ({"verdict": "accept", "version": "1"}, "missing or invalid: version"),
        ({"verdict": "accept", "version": 0}, "missing or invalid: version"),
        ({"verdict": "accept", "reason": "a\x00b"}, "missing or invalid: reason"),
        ({"verdict": "accept", "reviewer": "z" * 101}, "missing or invalid: reviewer"),
        ({"verdict": "correct"}, "needs the right answer"),
        ({"verdict": "accept", "text": "hunter2"}, "takes no text"),
    ],
)
def test_invalid_verdicts_are_refused_without_their_values(
    tool: Tool, review: ReviewQueue, ticket: Ticket, message: dict[str, Any], detail: str
) -> None:
    told = problem(tool.send(ticket.id, **message), 400, "urn:ilis-guard:error:ReviewError")
    assert detail in told["detail"]
    assert "hunter2" not in told["detail"]
    assert review.get(ticket.id).ticket.state == "open"


@pytest.mark.parametrize("body", ["", "nonsense", "[]", "{" * 5000, '{"ticket": "\\ud800"}', "null"])
def test_malformed_messages_are_refused(tool: Tool, ticket: Ticket, body: str) -> None:
    problem(tool.send(ticket.id, body=body), 400, "urn:ilis-guard:error:ReviewError")


def test_an_unknown_ticket_is_not_found(tool: Tool, ticket: Ticket) -> None:
    problem(tool.send("f" * 32, verdict="accept"), 404, "urn:ilis-guard:error:TicketNotFoundError")
    # The first characters do for people, not for tools.
    problem(tool.send(ticket.id[:8], verdict="accept"), 400, "urn:ilis-guard:error:ReviewError")


def test_a_large_body_is_refused_before_reading(site: Site, tool: Tool, ticket: Ticket) -> None:
    problem(tool.send(ticket.id, body="x" * 300_000), 413)
    with site.client() as client:
        chunks = (b"x" * 1000 for _ in range(300))
        problem(client.post(f"/v1/tickets/{ticket.id}/verdict", content=chunks), 413)


def test_secrets_can_change_while_the_server_runs(
    start: Start, settings: PageSettings, ask: Ask, tmp_path: Path, logged: list[Any]
) -> None:
    secret = tmp_path / "verdicts"
    secret.write_text(SECRET)
    with start(settings.model_copy(update={"verdict_secret": f"file:{secret}"})) as site:
        tool = Tool(site)
        assert tool.send(ask("1").id, verdict="accept").status_code == 200
        secret.write_text(f"{OTHER_SECRET} {SECRET}")
        assert tool.send(ask("2").id, verdict="accept").status_code == 200
        assert tool.send(ask("3").id, verdict="accept", secret=OTHER_SECRET).status_code == 200
        secret.write_text(OTHER_SECRET)
        problem(tool.send(ask("4").id, verdict="accept"), 401, UNSIGNED)
        secret.unlink()
        told = problem(tool.send(ask("5").id, verdict="accept"), 503, "urn:ilis-guard:error:ConfigError")
    # Where the secret should be is in the log, and not told outward.
    assert str(secret) not in told["detail"]
    assert str(secret) in next(one["error"] for one in logged if one.get("request") == told["request_id"])


@pytest.mark.parametrize("secret", ["", "too short"])
def test_a_malformed_secret_keeps_the_server_from_starting(
    start: Start, settings: PageSettings, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("VERDICT_SECRET", secret)
    with pytest.raises(ConfigError, match="secret"), start(settings):
        pass


def test_without_a_secret_no_verdict_is_accepted(start: Start, settings: PageSettings, ticket: Ticket) -> None:
    with start(settings.model_copy(update={"verdict_secret": None})) as site:
        problem(Tool(site).send(ticket.id, verdict="accept"), 404)


def test_a_lost_database_is_a_503(tool: Tool, database: Path, ticket: Ticket, logged: list[Any]) -> None:
    database.write_bytes(b"no database at all" * 1000)
    told = problem(tool.send(ticket.id, verdict="accept"), 503, "urn:ilis-guard:error:QueueStorageError")
    assert "tickets.db" not in told["detail"]
    assert any("QueueStorageError" in one["error"] for one in logged if one.get("request") == told["request_id"])


def test_the_document_names_every_status(site: Site) -> None:
    with site.client() as client:
        document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/healthz", "/v1/tickets/{ticket}/verdict"}
    operation = document["paths"]["/v1/tickets/{ticket}/verdict"]["post"]
    assert set(operation["responses"]) == {"200", "400", "401", "404", "409", "413", "500", "503"}
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.removeprefix("#/components/schemas/")]
    assert set(schema["properties"]) == {"ticket", "verdict", "text", "reason", "reviewer", "version"}
    assert [parameter["name"] for parameter in operation["parameters"]] == [
        "ticket",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ]
