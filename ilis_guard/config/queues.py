"""What guard.yaml says of queues and of the endpoints that hear of their tickets."""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

EXPIRE: Final = "expire"
"""What becomes of an overdue ticket, unless it moves to the queue of a name."""

Event = Literal["ticket.created", "ticket.claimed", "ticket.overdue", "ticket.resolved", "delivery.exhausted"]
EVENTS: Final[tuple[Event, ...]] = (
    "ticket.created",
    "ticket.claimed",
    "ticket.overdue",
    "ticket.resolved",
    "delivery.exhausted",
)
"""What endpoints may hear of."""

TEMPLATES: Final = ("generic", "slack", "pagerduty")
"""Forms of a webhook that come with ilis_guard."""

LONGEST: Final = 3_155_760_000.0
"""Seconds that a ticket or a claim may last: a century. No calendar tells when something much longer is over."""

Priority = Annotated[int, Field(ge=-100, le=100)]
Name = Annotated[str, Field(pattern=r"^\S(?:.*\S)?$", max_length=100)]
"""Any text on one line without spaces around it, as policies write the queues they escalate to."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class QueueSettings(_Section):
    """How tickets of one queue wait. A queue that isn't configured has no due time and the priority 0."""

    name: Name
    priority: Priority = 0
    """Higher is reviewed earlier."""
    due: float | None = Field(default=None, gt=0, le=LONGEST)
    """Seconds from a ticket's arrival until it is overdue; None for never."""
    overdue: Name = EXPIRE
    """What then becomes of it: ``expire``, or the name of the queue that it moves to."""
    lease: float = Field(default=900.0, ge=1, le=LONGEST)
    """Seconds that a claim lasts unless it is renewed."""


ANY_OTHER: Final = QueueSettings(name="any other")
"""How tickets wait in a queue that isn't configured."""


class EndpointSettings(_Section):
    """A webhook's other end."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=100)
    """Under which its deliveries are kept: changing it makes another endpoint."""
    url: str = Field(min_length=1)
    """An https address, or a reference to one where the address itself is a secret: ``${NAME}`` or ``file:PATH``."""
    secret: str | None = Field(default=None, min_length=1)
    """Where the signing secret stands: ``${NAME}`` in the environment, or ``file:PATH``. Never the secret itself."""
    events: tuple[Event, ...] = EVENTS
    """What it hears of."""
    queues: tuple[Name, ...] | None = None
    """Only tickets of these queues; None for all."""
    template: str = Field(default="generic", min_length=1)
    """What it is sent: ``generic``, ``slack``, ``pagerduty``, or the JSON that a Jinja file (``PATH.j2``) makes."""
    routing_key: str | None = Field(default=None, min_length=1)
    """Where PagerDuty's integration key stands, as `secret`."""
    full: bool = False
    """Whether it is sent the ticket with its prompt and answers, and not only what happened to it."""
    per_second: float = Field(default=20.0, gt=0, le=10_000)
    """At most so many webhooks a second, by all workers together."""

    def hears(self, event: Event, queues: Sequence[str]) -> bool:
        """Whether it is told of an event about a ticket of these queues."""
        return event in self.events and (self.queues is None or not set(self.queues).isdisjoint(queues))


def moves_in_a_circle(queues: Sequence[QueueSettings]) -> str | None:
    """The name of a queue whose overdue tickets would come back to it; None where there is none."""
    to = {queue.name: queue.overdue for queue in queues if queue.due is not None}
    for start in to:  # noqa: PLC0206 - the walk looks up more keys than this one
        seen, name = {start}, to[start]
        while name in to and name not in seen:
            seen.add(name)
            name = to[name]
        if name == start:
            return start
    return None
