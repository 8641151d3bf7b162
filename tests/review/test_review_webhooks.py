"""Webhook templates: generic, Slack, PagerDuty, a user's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.config.review import EVENTS, EndpointSettings
from ilis_guard.errors import ConfigError
from ilis_guard.review.record import TicketRecord
from ilis_guard.review.webhooks import MAX_BYTES, Message, template_for
from ilis_guard.types import Attempt, Ticket, Verdict
from tests.reviewing import RULING

TICKET = "3f2a" + "0" * 28
PROMPT = "Is <b>5 mg & 5 ml</b> the same? \N{SMILING FACE WITH SUNGLASSES}"
ANSWER = "No, <!channel>."
LINK = f"https://review.example.org/tickets/{TICKET}"


def _data(**changes: Any) -> dict[str, Any]:
    return {
        "ticket": TICKET,
        "kind": "escalated",
        "decision": "d1",
        "queue": "nurses <@U1>",
        "priority": 5,
        "due_at": 1_800_003_600.0,
        "created_at": 1_800_000_000.0,
        "state": "open",
        "version": 1,
        "policy": "sha256:abc",
        "rule": "unsure",
        "claimed_until": None,
        "verdict": None,
        "by": "",
        **changes,
    }


DATA: dict[str, dict[str, Any]] = {
    "ticket.created": _data(),
    "ticket.claimed": _data(by="ada & bo", state="claimed"),
    "ticket.overdue": _data(was_due_at=1.0, moved_from="nurses", moved_to="doctors"),
    "ticket.resolved": _data(by="ada", verdict="correct", state="resolved"),
    "delivery.exhausted": {
        "ticket": TICKET,
        "queue": "nurses",
        "delivery": "e" * 32,
        "endpoint": "crm",
        "event": "ticket.created",
        "state": "exhausted",
        "tries": 10,
        "status": 500,
    },
}


def _record(*, prompt: str = PROMPT) -> TicketRecord:
    return TicketRecord(
        ticket=Ticket(id=TICKET, queue="nurses", state="resolved", created_at=1.0, verdict=Verdict.CORRECT, text="No."),
        decision="d1",
        request={"messages": [{"role": "user", "content": prompt}], "labels": {}},
        attempts=(Attempt(tier="small", text=ANSWER, uncertainty=0.4).to_dict(),),
        policy="sha256:abc",
        rule="unsure",
        rulings=(RULING,),
        say="",
        overdue="expire",
    )


def _message(event: str = "ticket.created", **changes: Any) -> Message:
    plain: dict[str, Any] = {"id": "e" * 32, "type": event, "at": 1_800_000_000.25, "data": DATA[event], "link": LINK}
    return Message(**plain | changes)


def _made(message: Message, *, template: str = "generic", **settings: Any) -> Any:
    return json.loads(_text(message, template=template, **settings))


def _text(message: Message, *, template: str = "generic", **settings: Any) -> str:
    return template_for(EndpointSettings(name="r", url="https://hooks.test/", template=template, **settings))(message)


@pytest.fixture
def pagerduty(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("PAGERDUTY_KEY", "k" * 32)
    return {"template": "pagerduty", "routing_key": "${PAGERDUTY_KEY}"}


@pytest.mark.parametrize("event", EVENTS)
def test_the_generic_template_follows_standard_webhooks(event: str) -> None:
    assert _made(_message(event)) == {
        "type": event,
        "timestamp": "2027-01-15T08:00:00.250Z",
        "data": {**DATA[event], "link": LINK},
    }


def test_a_full_message_holds_the_ticket_without_signatures() -> None:
    record = _made(_message(record=_record()))["data"]["record"]

    assert record["request"]["messages"] == [{"role": "user", "content": PROMPT}]
    assert record["attempts"][0]["text"] == ANSWER
    assert record["ticket"]["text"] == "No."
    assert "signatures" not in record["attempts"][0]


def test_a_full_message_that_is_too_large_becomes_thin() -> None:
    text = _text(_message(record=_record(prompt="ü" * MAX_BYTES)))
    data = json.loads(text)["data"]

    assert len(text.encode()) <= MAX_BYTES
    assert data["record"] is None
    assert data["record_left_out"].endswith(f" bytes are more than {MAX_BYTES}")
    assert data["ticket"] == TICKET


@pytest.mark.parametrize("template", ["generic", "slack", "pagerduty", "own"])
def test_a_lone_surrogate_in_a_prompt_is_replaced(tmp_path: Path, pagerduty: dict[str, Any], template: str) -> None:
    settings: dict[str, Any] = {"template": template}
    if template == "own":
        settings["template"] = _own(tmp_path, '{"asked": "{{ record.request.messages[0].content }}"}')
    if template == "pagerduty":
        settings = pagerduty
    body = _text(_message(record=_record(prompt="Half of \ud83d?")), **settings)
    assert "Half of ??" in body.encode().decode()


@pytest.mark.parametrize("event", EVENTS)
def test_slack_gets_a_text_and_blocks_in_which_nothing_is_markup(event: str) -> None:
    told = _made(_message(event, record=_record()), template="slack")

    assert "<" not in told["text"]
    assert "& " not in told["text"]
    kinds = [block["type"] for block in told["blocks"]]
    assert kinds == ["section", "context", "section", "section", "section", "actions"]
    sections = [block["text"] for block in told["blocks"] if block["type"] == "section"]
    assert {section["type"] for section in sections} == {"plain_text"}
    assert [section["text"] for section in sections][1:] == [
        f"question: {PROMPT}",
        f"proposed: {ANSWER}",
        "corrected: No.",
    ]
    assert told["blocks"][-1]["elements"][0]["url"] == LINK


def test_slack_headlines_describe_the_event() -> None:
    said = {event: _made(_message(event), template="slack")["text"] for event in EVENTS}
    assert said == {
        "ticket.created": "Ticket 3f2a0000 waits in nurses &lt;@U1&gt;",
        "ticket.claimed": "ada &amp; bo claimed ticket 3f2a0000 in nurses &lt;@U1&gt;",
        "ticket.overdue": "Ticket 3f2a0000 was overdue in nurses and moved to doctors",
        "ticket.resolved": "Ticket 3f2a0000 in nurses &lt;@U1&gt; is resolved: correct",
        "delivery.exhausted": "crm did not receive ticket.created for ticket 3f2a0000: 10 tries failed",
    }
    expired = _message("ticket.overdue", data=_data(was_due_at=1.0, state="expired"))
    assert _made(expired, template="slack")["text"].endswith("was overdue and expired without a verdict")
    gone = _message("delivery.exhausted", data=DATA["delivery.exhausted"] | {"state": "disabled"})
    assert _made(gone, template="slack")["text"].endswith(": it answered 410 Gone")


def test_a_thin_message_to_slack_has_no_texts_and_without_a_page_no_button() -> None:
    told = _made(_message(link=None), template="slack")
    assert [block["type"] for block in told["blocks"]] == ["section", "context"]


def test_long_texts_in_any_script_fit_into_slack_and_pagerduty(pagerduty: dict[str, Any]) -> None:
    record = _record(prompt="\N{SMILING FACE WITH SUNGLASSES}" * 100_000)
    for settings in ({"template": "slack"}, pagerduty):
        assert len(_text(_message(record=record), **settings).encode()) <= MAX_BYTES


def test_a_ticket_is_an_incident_from_its_arrival_to_its_verdict(pagerduty: dict[str, Any]) -> None:
    told = {event: _made(_message(event), **pagerduty) for event in EVENTS}

    assert {event: body["event_action"] for event, body in told.items()} == {
        "ticket.created": "trigger",
        "ticket.claimed": "acknowledge",
        "ticket.overdue": "trigger",
        "ticket.resolved": "resolve",
        "delivery.exhausted": "trigger",
    }
    dead = told.pop("delivery.exhausted")
    assert {body["dedup_key"] for body in told.values()} == {f"ticket-{TICKET}"}
    assert dead["dedup_key"] == "delivery-" + "e" * 32
    assert {body["routing_key"] for body in told.values()} == {"k" * 32}
    assert told["ticket.created"]["payload"] == {
        "summary": "Ticket 3f2a0000 waits in nurses <@U1>",
        "source": "ilis_guard",
        "severity": "warning",
        "timestamp": "2027-01-15T08:00:00.250Z",
        "component": "nurses <@U1>",
        "class": "ticket.created",
        "custom_details": DATA["ticket.created"],
    }
    assert told["ticket.created"]["links"] == [{"href": LINK, "text": "Open the ticket"}]
    assert told["ticket.overdue"]["payload"]["severity"] == "error"


def _own(folder: Path, text: str) -> str:
    path = folder / "own.j2"
    path.write_text(text)
    return str(path)


def test_an_own_template_sees_the_message(tmp_path: Path) -> None:
    template = _own(
        tmp_path,
        """{"what": {{ type | tojson }}, "at": {{ timestamp | tojson }}, "key": {{ id | tojson }},
        "queue": {{ data.queue | tojson }}, "see": {{ link | tojson }},
        "asked": {{ (record.request.messages[-1].content if record else none) | tojson }}}""",
    )
    assert _made(_message(), template=template) == {
        "what": "ticket.created",
        "at": "2027-01-15T08:00:00.250Z",
        "key": "e" * 32,
        "queue": "nurses <@U1>",
        "see": LINK,
        "asked": None,
    }
    assert _made(_message(record=_record()), template=template)["asked"] == PROMPT


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() | string | tojson }}",
        "{{ data.items.__globals__ | tojson }}",
        "{{ self._TemplateReference__context.environment | tojson }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() | tojson }}",
        "{{ data.update(queue='other') | tojson }}",
        "{{ data.nothing | tojson }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10**9) | list | tojson }}",
    ],
)
def test_an_own_template_stays_in_its_sandbox(tmp_path: Path, text: str) -> None:
    message = _message(record=_record())
    with pytest.raises(ConfigError, match="failed") as caught:
        _text(message, template=_own(tmp_path, text))
    assert PROMPT not in str(caught.value)
    assert message.data == DATA["ticket.created"]


@pytest.mark.parametrize(
    "text", ["no JSON", "{{ data.queue }}", '{"asked": "{{ record.request.messages[0].content }}', ""]
)
def test_an_own_template_without_json_is_an_error_without_quotes(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="made no JSON") as caught:
        _text(_message(record=_record()), template=_own(tmp_path, text))
    assert PROMPT not in str(caught.value)


def test_an_own_template_with_a_large_result_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="20002 bytes"):
        _text(_message(), template=_own(tmp_path, '"{{ "x" * 20000 }}"'))


def test_an_endless_template_is_aborted(tmp_path: Path) -> None:
    again = "{% for a in range(100000) %}{% for b in range(100000) %}{{ a + b }},{% endfor %}{% endfor %}"
    with pytest.raises(ConfigError, match="let it say less"):
        _text(_message(), template=_own(tmp_path, f"[{again}0]"))


def test_an_error_in_an_own_template_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"own\.j2:2: .*end of print statement"):
        _text(_message(), template=_own(tmp_path, '{\n"a": {{ b c }}}'))


def test_a_missing_template_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.j2' can't be read: FileNotFoundError"):
        _text(_message(), template=str(tmp_path / "nowhere.j2"))


def test_a_missing_template_variable_is_named_only_without_texts(tmp_path: Path) -> None:
    template = _own(tmp_path, "{{ data[link if record is none else record.request.messages[0].content].more }}")
    with pytest.raises(ConfigError, match=r"review\.example\.org"):
        _text(_message(), template=template)
    with pytest.raises(ConfigError, match=r"failed: UndefinedError;") as caught:
        _text(_message(record=_record()), template=template)
    assert PROMPT not in str(caught.value)
