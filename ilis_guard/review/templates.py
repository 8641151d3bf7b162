"""What an endpoint is sent: the generic payload, Slack's, PagerDuty's, or what a user's own template makes of it."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ilis_guard.config import secrets
from ilis_guard.config.review import EndpointSettings
from ilis_guard.errors import ConfigError
from ilis_guard.review.record import TicketRecord, judged_in

MOST_BYTES: Final = 20_000
"""Of a body: Standard Webhooks' limit."""
_SUMMARY: Final = 1024
"""Characters of PagerDuty's summary."""
_LONGEST_TEXT: Final = 1500
"""Characters of a question or an answer in Slack and PagerDuty: three of them fit into a body in any script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is to be told, before it has an endpoint's form."""

    id: str
    """The delivery's, the same on every try."""
    type: str
    """The event."""
    at: float
    """When it happened, seconds since the epoch."""
    data: Mapping[str, Any]
    """The thin payload: no prompt, no answer."""
    link: str | None = None
    """Where people see the ticket; None without a reviewers' page."""
    record: TicketRecord | None = None
    """The ticket as it is now, where the endpoint gets the full payload."""

    @property
    def timestamp(self) -> str:
        """When it happened, in ISO 8601."""
        return datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    @property
    def full(self) -> dict[str, Any] | None:
        """The ticket with its texts, but without signatures, which are large; None in a thin message."""
        if self.record is None:
            return None
        told = self.record.to_dict()
        attempts = [{key: tried[key] for key in tried if key != "signatures"} for tried in told["attempts"]]
        return {**told, "attempts": attempts}


Template = Callable[[Message], str]
"""Makes a body of JSON. Raises ConfigError where it can't."""


def template_for(settings: EndpointSettings) -> Template:
    """The template that an endpoint has.

    Raises:
        ConfigError: its file can't be read, or is no template.
    """
    built_in: Mapping[str, Callable[[Message], dict[str, Any]]] = {
        "generic": generic,
        "slack": slack,
        "pagerduty": lambda message: pagerduty(message, secrets.resolve_secret(str(settings.routing_key))),
    }
    if settings.template in built_in:
        make = built_in[settings.template]
        return lambda message: _sized(_json(make(message)))
    return _own(Path(settings.template))


def generic(message: Message) -> dict[str, Any]:
    """Standard Webhooks' form: ``type``, ``timestamp``, ``data``. A ticket too large for a body is left out."""
    data = {**message.data, "link": message.link}
    body = {"type": message.type, "timestamp": message.timestamp, "data": data}
    if message.record is None:
        return body
    full = {**body, "data": {**data, "record": message.full}}
    if (size := len(_json(full).encode())) <= MOST_BYTES:
        return full
    return {**body, "data": {**data, "record": None, "record_left_out": f"{size} bytes are more than {MOST_BYTES}"}}


def slack(message: Message) -> dict[str, Any]:
    """A text for notifications, and blocks for those who look."""
    headline = _headline(message)
    blocks: list[dict[str, Any]] = [_plain_section(headline), _context(_details(message))]
    blocks += [_plain_section(f"{heading}: {text}") for heading, text in _texts(message)]
    if message.link is not None:
        button = {"type": "button", "text": {"type": "plain_text", "text": "Open the ticket"}, "url": message.link}
        blocks.append({"type": "actions", "elements": [button]})
    return {"text": _slack_escaped(headline), "blocks": blocks}


def pagerduty(message: Message, routing_key: str) -> dict[str, Any]:
    """Events API v2: a ticket is an incident, from its arrival to its verdict; a dead letter is one of its own."""
    is_ticket = message.type != "delivery.exhausted"
    event: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": {"ticket.claimed": "acknowledge", "ticket.resolved": "resolve"}.get(message.type, "trigger"),
        "dedup_key": f"ticket-{message.data['ticket']}" if is_ticket else f"delivery-{message.data['delivery']}",
    }
    if event["event_action"] != "trigger":
        return event
    return {
        **event,
        "payload": {
            "summary": _headline(message)[:_SUMMARY],
            "source": "ilis_guard",
            "severity": "warning" if message.type == "ticket.created" else "error",
            "timestamp": message.timestamp,
            "component": message.data["queue"],
            "class": message.type,
            "custom_details": {**message.data, **dict(_texts(message))},
        },
        "links": [] if message.link is None else [{"href": message.link, "text": "Open the ticket"}],
    }


def _own(path: Path) -> Template:
    # What a user writes sees what it is given and nothing else, and changes none of it.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    try:
        template = environment.from_string(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the template {str(path)!r} can't be read: {type(error).__name__}; check it") from None
    except TemplateError as error:
        line = getattr(error, "lineno", 1)
        raise ConfigError(f"{path}:{line}: this is no Jinja template: {error.message}") from None

    def render(message: Message) -> str:
        try:
            parts = template.generate(
                id=message.id,
                type=message.type,
                timestamp=message.timestamp,
                data=message.data,
                link=message.link,
                record=message.full,
            )
            body = _whole("".join(_beginning(parts)))
        except Exception as error:  # noqa: BLE001 - a template can fail in any way that Python knows
            # Where there is a prompt, the error's words may quote it.
            why = type(error).__name__ if message.record is not None else f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"the template {str(path)!r} failed: {why}; try it with all that it may be given"
            ) from None
        body = _sized(body)
        try:
            json.loads(body)
        except ValueError:
            # What it made isn't shown, for the same reason.
            what = "made no JSON; write values with the filter: {{ data.queue | tojson }}"
            raise ConfigError(f"the template {str(path)!r} {what}") from None
        return body

    return render


def _beginning(parts: Iterable[str]) -> Iterator[str]:
    """Parts, until they are far too much for a body: loops in loops would go on for hours."""
    size = 0
    for part in parts:
        yield part
        size += len(part)
        if size > 2 * MOST_BYTES:
            return


def _sized(body: str) -> str:
    if (size := len(body.encode())) > MOST_BYTES:
        raise ConfigError(f"the template made {size} bytes, and a webhook has at most {MOST_BYTES}; let it say less")
    return body


def _json(value: Any) -> str:
    return _whole(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def _whole(text: str) -> str:
    """Without half characters (lone surrogates), which can't be sent and few parsers would take."""
    return text.encode(errors="replace").decode()


def _headline(message: Message) -> str:
    data = message.data
    ticket = str(data["ticket"])[:8]
    match message.type:
        case "ticket.created":
            return f"Ticket {ticket} waits in {data['queue']}"
        case "ticket.claimed":
            return f"{data['by']} claimed ticket {ticket} in {data['queue']}"
        case "ticket.resolved":
            return f"Ticket {ticket} in {data['queue']} is resolved: {data['verdict']}"
        case "ticket.overdue" if "moved_to" in data:
            return f"Ticket {ticket} was overdue in {data['moved_from']} and moved to {data['moved_to']}"
        case "ticket.overdue":
            return f"Ticket {ticket} in {data['queue']} was overdue and expired without a verdict"
        case _:
            why = "it answered 410 Gone" if data["state"] == "disabled" else f"{data['tries']} tries failed"
            return f"{data['endpoint']} did not hear of {data['event']} for ticket {ticket}: {why}"


def _details(message: Message) -> str:
    data = message.data
    told = {"rule": data.get("rule"), "priority": data.get("priority"), "tries": data.get("tries")}
    return " · ".join(f"{name} {value}" for name, value in told.items() if value is not None) or message.type


def _texts(message: Message) -> list[tuple[str, str]]:
    """What a full message shows people: the question's last turn, the proposed answer, the corrected one."""
    if message.record is None:
        return []
    turns = [turn["content"] for turn in message.record.request["messages"] if turn["role"] == "user"]
    proposed = judged_in(message.record.attempts)
    shown = {
        "question": turns[-1] if turns else "",
        "proposed": "" if proposed is None else str(proposed["text"]),
        "corrected": message.record.ticket.text,
    }
    return [(heading, _shortened(text)) for heading, text in shown.items() if text]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"


def _plain_section(text: str) -> dict[str, Any]:
    """Plain: what stands in it is no markup, so a prompt mentions nobody and links nowhere."""
    return {"type": "section", "text": {"type": "plain_text", "text": text, "emoji": False}}


def _context(text: str) -> dict[str, Any]:
    return {"type": "context", "elements": [{"type": "plain_text", "text": text, "emoji": False}]}


def _slack_escaped(text: str) -> str:
    for mark, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, escaped)
    return text
