"""Build webhooks: the generic payload, Slack's, PagerDuty's, or a user's own template, signed for their endpoint."""

import asyncio
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from ilis_guard.concurrency.portal import run_in_thread
from ilis_guard.config import secrets
from ilis_guard.config.review import TEMPLATES, EndpointSettings
from ilis_guard.errors import ConfigError
from ilis_guard.review import signing
from ilis_guard.review.outbox import Delivery
from ilis_guard.review.queue import ReviewQueue
from ilis_guard.review.record import TicketRecord
from ilis_guard.review.rendering import OwnTemplate

MAX_BYTES: Final = 20_000
"""Of a body: Standard Webhooks' limit."""
_MAX_SUMMARY: Final = 1024
"""Characters of PagerDuty's summary."""
_MAX_RENDERINGS: Final = 2
"""Processes at once that render an endpoint's own template."""
_MAX_TEXT: Final = 1500
"""Characters of a question or an answer in Slack and PagerDuty: three of them fit into a body in any script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What an endpoint gets to know, before a template forms it."""

    id: str
    """The delivery's, the same on every try."""
    type: str
    """The event."""
    at: float
    """When it happened, seconds since the epoch."""
    data: Mapping[str, Any]
    """The thin payload: no prompt, no answer."""
    link: str | None = None
    """The ticket's address on the reviewers' page; None without one."""
    record: TicketRecord | None = None
    """The ticket's current record, where the endpoint gets the full payload."""

    @property
    def timestamp(self) -> str:
        """The time of the event in ISO 8601."""
        return datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    @property
    def full(self) -> dict[str, Any] | None:
        """The record with its texts, but without signatures, which are large; None in a thin message."""
        if self.record is None:
            return None
        record = self.record.to_dict()
        attempts = [{key: attempt[key] for key in attempt if key != "signatures"} for attempt in record["attempts"]]
        return {**record, "attempts": attempts}


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A message that is ready to be sent."""

    url: str
    headers: Mapping[str, str]
    body: str
    may_quote: bool
    """Whether errors may quote the response: not where it may repeat a prompt or a secret."""


Template = Callable[[Message], str]
"""Returns a body of JSON. Raises ConfigError where it can't."""


class WebhookBuilder:
    """Builds webhooks from the deliveries of a queue. What takes time runs outside the event loop.

    Args:
        queue: whose endpoints.
        page: address of the reviewers' page, which messages link to; None where there is none.

    Raises:
        ConfigError: a template can't be used.
    """

    def __init__(self, queue: ReviewQueue, *, page: str | None) -> None:
        self._queue = queue
        self._page = page
        endpoints = queue.store.outbox.endpoints
        self._templates = {name: template_for(endpoint) for name, endpoint in endpoints.items()}
        # Threads of an endpoint's own: one whose template takes long holds no other's up.
        self._threads = {
            name: ThreadPoolExecutor(_MAX_RENDERINGS, f"template of {name}")
            for name, endpoint in endpoints.items()
            if endpoint.template not in TEMPLATES
        }

    async def message(self, delivery: Delivery) -> Message:
        """Return a delivery's message.

        Raises:
            ReviewError: the ticket can't be read.
        """
        is_full = self._queue.store.outbox.endpoints[delivery.endpoint].full
        return Message(
            id=delivery.id,
            type=delivery.event,
            at=delivery.created_at,
            data=delivery.data,
            link=None if self._page is None else f"{self._page.rstrip('/')}/tickets/{delivery.ticket}",
            record=await run_in_thread(partial(self._queue.get, delivery.ticket)) if is_full else None,
        )

    async def build(self, message: Message, endpoint: str, *, now: float) -> Webhook:
        """Form and sign a message for an endpoint.

        Raises:
            ConfigError: the template fails, or a secret isn't where guard.yaml says it is.
        """
        settings = self._queue.store.outbox.endpoints[endpoint]
        template, threads = self._templates[endpoint], self._threads.get(endpoint)
        if threads is None:
            body = template(message)
        else:
            body = await asyncio.get_running_loop().run_in_executor(threads, template, message)
        # Resolved for each message: addresses and secrets may change without a restart.
        has_secret_url = secrets.is_reference(settings.url)
        secret = None if settings.secret is None else secrets.resolve_secret(settings.secret)
        return Webhook(
            url=secrets.resolve_secret(settings.url),
            headers=signing.sign(secret, id=message.id, at=now, body=body),
            body=body,
            may_quote=not (settings.full or has_secret_url or settings.routing_key is not None),
        )


def template_for(settings: EndpointSettings) -> Template:
    """Return an endpoint's template.

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
        return lambda message: _within_limit(_json(make(message)))
    return _own_template(Path(settings.template))


def generic(message: Message) -> dict[str, Any]:
    """Return Standard Webhooks' form: ``type``, ``timestamp``, ``data``. A record too large for a body is left out."""
    data = {**message.data, "link": message.link}
    body = {"type": message.type, "timestamp": message.timestamp, "data": data}
    if message.record is None:
        return body
    full = {**body, "data": {**data, "record": message.full}}
    if (size := len(_json(full).encode())) <= MAX_BYTES:
        return full
    return {**body, "data": {**data, "record": None, "record_left_out": f"{size} bytes are more than {MAX_BYTES}"}}


def slack(message: Message) -> dict[str, Any]:
    """Return Slack's form: a text for notifications, and blocks for the channel."""
    headline = _headline(message)
    blocks: list[dict[str, Any]] = [_plain_section(headline), _context(_details(message))]
    blocks += [_plain_section(f"{heading}: {text}") for heading, text in _texts(message)]
    if message.link is not None:
        button = {"type": "button", "text": {"type": "plain_text", "text": "Open the ticket"}, "url": message.link}
        blocks.append({"type": "actions", "elements": [button]})
    return {"text": _slack_escaped(headline), "blocks": blocks}


def pagerduty(message: Message, routing_key: str) -> dict[str, Any]:
    """Return an event of Events API v2: a ticket is an incident until its verdict, a dead letter another one."""
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
            "summary": _headline(message)[:_MAX_SUMMARY],
            "source": "ilis_guard",
            "severity": "warning" if message.type == "ticket.created" else "error",
            "timestamp": message.timestamp,
            "component": message.data["queue"],
            "class": message.type,
            "custom_details": {**message.data, **dict(_texts(message))},
        },
        "links": [] if message.link is None else [{"href": message.link, "text": "Open the ticket"}],
    }


def _own_template(path: Path) -> Template:
    own = OwnTemplate(path, max_bytes=MAX_BYTES)

    def render(message: Message) -> str:
        values = {
            "id": message.id,
            "type": message.type,
            "timestamp": message.timestamp,
            "data": message.data,
            "link": message.link,
            "record": message.full,
        }
        # An error's text may quote a prompt.
        body = _encodable(own.render(values, may_quote=message.record is None))
        try:
            json.loads(body)
        except (ValueError, RecursionError):
            # Without the body, for the same reason.
            advice = "write values with the filter: {{ data.queue | tojson }}"
            raise ConfigError(f"the template {str(path)!r} made no JSON; {advice}") from None
        return body

    return render


def _within_limit(body: str) -> str:
    if (size := len(body.encode())) > MAX_BYTES:
        raise ConfigError(f"the template made {size} bytes, and a webhook has at most {MAX_BYTES}; let it say less")
    return body


def _json(value: Any) -> str:
    return _encodable(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def _encodable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 can't encode."""
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
            reason = "it answered 410 Gone" if data["state"] == "disabled" else f"{data['tries']} tries failed"
            return f"{data['endpoint']} did not receive {data['event']} for ticket {ticket}: {reason}"


def _details(message: Message) -> str:
    data = message.data
    details = [(name, data.get(name)) for name in ("rule", "priority", "tries")]
    return " · ".join(f"{name} {value}" for name, value in details if value is not None) or message.type


def _texts(message: Message) -> list[tuple[str, str]]:
    """Return the texts of a full message: the last question, the proposed answer, the corrected one."""
    if message.record is None:
        return []
    turns = [turn["content"] for turn in message.record.request["messages"] if turn["role"] == "user"]
    texts = {
        "question": turns[-1] if turns else "",
        "proposed": message.record.proposed or "",
        "corrected": message.record.ticket.text,
    }
    return [(heading, _shortened(text)) for heading, text in texts.items() if text]


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def _plain_section(text: str) -> dict[str, Any]:
    """Return a plain-text section: no markup, so that a prompt can't mention people or link anywhere."""
    return {"type": "section", "text": {"type": "plain_text", "text": text, "emoji": False}}


def _context(text: str) -> dict[str, Any]:
    return {"type": "context", "elements": [{"type": "plain_text", "text": text, "emoji": False}]}


def _slack_escaped(text: str) -> str:
    for mark, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, escaped)
    return text
