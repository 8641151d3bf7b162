"""guard.yaml, `review`: where tickets are stored, how they wait, webhook endpoints and the reviewers' page."""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from ilis_guard.config import addresses
from ilis_guard.config.base import Name, StrictModel, absolute_path, relative_to_file
from ilis_guard.config.secrets import (
    REFERENCE_REQUIRED,
    SecretReference,
    is_reference,
    is_token_hash,
    resolve_secret,
    with_absolute_path,
)
from ilis_guard.config.strict_yaml import Document
from ilis_guard.config.validation import duplicate_names
from ilis_guard.errors import ConfigError

EXPIRE: Final = "expire"
"""The value of `overdue` with which overdue tickets expire instead of moving to a queue."""

Event = Literal["ticket.created", "ticket.claimed", "ticket.overdue", "ticket.resolved", "delivery.exhausted"]
EVENTS: Final[tuple[Event, ...]] = get_args(Event)
"""The types of webhooks."""

TEMPLATES: Final = ("generic", "slack", "pagerduty")
"""The templates that come with ilis_guard."""

LONGEST: Final = 3_155_760_000.0
"""Seconds in a century, the longest due time and lease. Calendars can't express the end of something much longer."""

_SEVERAL_HOSTS: Final = re.compile(
    r"(?P<scheme>postgresql[+\w]*://)(?P<user>[^/?@]*@|)(?P<hosts>[^/?@,]*(?:,[^/?@,]*)+)(?P<rest>[/?].*|)"
)

Role = Literal["reviewer", "viewer"]
"""A `viewer` only reads; a `reviewer` also claims tickets and gives verdicts."""


def parse_database_url(text: str) -> URL | None:
    """Parse a database's URL, which may have several hosts as libpq writes them: ``postgresql://user@one,two:5433/db``.

    Returns:
        None where it is none.
    """
    several = _SEVERAL_HOSTS.fullmatch(text)
    try:
        if several is None:
            return make_url(text)
        url = make_url(several["scheme"] + several["user"] + several["rest"])
        return url.update_query_pairs([("host", host) for host in several["hosts"].split(",")], append=True)
    except (SQLAlchemyError, ValueError):
        return None


def _resolve_storage(storage: str, folder: Path) -> str:
    if is_reference(storage):
        return with_absolute_path(storage, folder)
    url = parse_database_url(storage)
    if url is None or url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return storage  # the review queue accepts or refuses it
    return url.set(database=absolute_path(str(url.database), folder)).render_as_string(hide_password=False)


def _resolve_template(template: str, folder: Path) -> str:
    return absolute_path(template, folder) if template.endswith(".j2") else template


def _check_page_url(url: str) -> str:
    """Check the page's address, and return it without a final slash."""
    parts = urlsplit(url)
    if not parts.hostname or parts.username or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("an address is a scheme, a host and perhaps a port: https://review.example.org")
    if parts.scheme != "https" and not (parts.scheme == "http" and addresses.is_loopback(parts.hostname)):
        raise ValueError("the page needs https, or http on this machine alone (127.0.0.1, ::1, localhost)")
    return url.rstrip("/")


def _check_network(address: str) -> str:
    ipaddress.ip_network(address)
    return address


class QueueSettings(StrictModel):
    """How tickets of one queue wait. A queue that isn't configured has the defaults."""

    name: Name
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher is reviewed earlier."""
    due: float | None = Field(default=None, gt=0, le=LONGEST)
    """Seconds from a ticket's creation until it is overdue; None for never."""
    overdue: Name = EXPIRE
    """What happens to an overdue ticket: ``expire``, or the name of the queue that it moves to."""
    lease: float = Field(default=900.0, ge=1, le=LONGEST)
    """Seconds that a claim lasts unless it is renewed."""


ANY_OTHER: Final = QueueSettings(name="any other")
"""The settings of a queue that isn't configured."""


class EndpointSettings(StrictModel):
    """A webhook endpoint."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=100)
    """Identifies the endpoint in stored deliveries: a new name makes a new endpoint."""
    url: SecretReference
    """An https address, or a reference to one that is secret: ``${NAME}`` or ``file:PATH``."""
    secret: SecretReference | None = None
    """A reference to the signing secret, never the secret itself."""
    events: tuple[Event, ...] = EVENTS
    """The types of webhooks that it receives."""
    queues: tuple[Name, ...] | None = None
    """It receives only webhooks about tickets of these queues; None for all."""
    template: Annotated[str, Field(min_length=1), relative_to_file(_resolve_template)] = "generic"
    """The body: ``generic``, ``slack``, ``pagerduty``, or a Jinja file that renders JSON, ``PATH.j2``."""
    routing_key: SecretReference | None = None
    """A reference to PagerDuty's integration key."""
    full: bool = False
    """Whether webhooks carry the ticket with its prompt and answers, or only the event."""
    per_second: float = Field(default=20.0, gt=0, le=10_000)
    """The largest number of webhooks a second, over all workers."""

    def receives(self, event: Event, queues: Sequence[str]) -> bool:
        """Whether it receives webhooks of this type about a ticket of these queues."""
        return event in self.events and (self.queues is None or not set(self.queues).isdisjoint(queues))


class ReviewerSettings(StrictModel):
    """A person who may sign in."""

    name: Name
    """As tickets and their history show it."""
    role: Role = "reviewer"
    token: SecretReference | None = None
    """The hash of a sign-in token, as ``ilis-guard reviewer-token`` prints it, or a reference to it: ``${NAME}`` or
    ``file:PATH``. Without one, the person signs in at the proxy only."""


class ProxySettings(StrictModel):
    """A reverse proxy that signs reviewers in before it forwards their requests."""

    header: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")
    """The header in which it names the person; the proxy must remove it from incoming requests."""
    addresses: tuple[Annotated[str, AfterValidator(_check_network)], ...] = Field(min_length=1)
    """The proxy's own, such as ``10.0.0.7`` or ``10.0.0.0/24``; the header is ignored from elsewhere."""


class PageSettings(StrictModel):
    """The reviewers' page."""

    url: Annotated[str, AfterValidator(_check_page_url)]
    """The address that reviewers open, such as ``https://review.example.org``."""
    reviewers: tuple[ReviewerSettings, ...] = ()
    """Nobody else can sign in, whether by token or by proxy."""
    proxy: ProxySettings | None = None
    verdict_secret: SecretReference | None = None
    """A reference to the secret with which other tools sign verdicts. Without one, verdicts come from the page only."""

    def ticket_url(self, id: str) -> str:  # noqa: A002 - the ticket's word for it
        """The address of a ticket's page."""
        return f"{self.url}/tickets/{id}"


class ReviewConfig(StrictModel):
    """The human queue."""

    storage: Annotated[str, relative_to_file(_resolve_storage)]
    """A database URL, such as ``sqlite:///tickets.db``, or a reference to one that holds a password: ``${NAME}`` or
    ``file:PATH``."""
    queues: tuple[QueueSettings, ...] = ()
    endpoints: tuple[EndpointSettings, ...] = ()
    internal_hosts: tuple[str, ...] = ()
    """Hosts of the operator's own network that endpoints may be on; all others are public, and reached by https."""
    page: PageSettings | None = None

    @property
    def storage_url(self) -> str:
        """The database URL.

        Raises:
            ConfigError: the reference to it can't be resolved.
        """
        return resolve_secret(self.storage)


def overdue_cycle(queues: Sequence[QueueSettings]) -> str | None:
    """The name of a queue whose overdue tickets would return to it; None where there is none."""
    targets = {queue.name: queue.overdue for queue in queues if queue.due is not None}
    for start in targets:  # noqa: PLC0206 - the loop inside looks up further keys
        seen, name = {start}, targets[start]
        while name in targets and name not in seen:
            seen.add(name)
            name = targets[name]
        if name == start:
            return start
    return None


def review_problems(document: Document, review: ReviewConfig) -> Iterator[str]:
    """Describe what the types can't exclude. No URL or secret is shown: URLs may hold passwords."""
    if not is_reference(review.storage):
        url = parse_database_url(review.storage)
        if url is None:
            yield document.problem(("review", "storage"), "not a database URL; write for instance sqlite:///tickets.db")
        elif url.password is not None or any("password" in option for option in url.query):
            remedy = "give a reference to the whole URL, `${NAME}` in the environment or `file:PATH`, or use PGPASSFILE"
            yield document.problem(("review", "storage"), f"the URL holds a password; {remedy}")
    yield from _queue_problems(document, review.queues)
    yield from _endpoint_problems(document, review)
    if review.page is not None:
        yield from _page_problems(document, review.page)


def _queue_problems(document: Document, queues: Sequence[QueueSettings]) -> Iterator[str]:
    keys = ("review", "queues")
    yield from duplicate_names(document, keys, [queue.name for queue in queues])
    for index, queue in enumerate(queues):
        if queue.name == EXPIRE:
            yield document.problem((*keys, index, "name"), f"{EXPIRE!r} means that tickets expire; rename the queue")
        if "overdue" in queue.model_fields_set and queue.due is None:
            yield document.key_problem((*keys, index, "overdue"), "`overdue` needs a `due`; add one")
    if (name := overdue_cycle(queues)) is not None:
        message = f"overdue tickets of {name!r} would return to it; let the last queue's expire, or have no `due`"
        yield document.problem(keys, message)


def _endpoint_problems(document: Document, review: ReviewConfig) -> Iterator[str]:
    yield from duplicate_names(document, ("review", "endpoints"), [endpoint.name for endpoint in review.endpoints])
    hosts = []
    for index, host in enumerate(review.internal_hosts):
        try:
            hosts.append(addresses.normalize_host(host))
        except ConfigError as error:
            yield document.problem(("review", "internal_hosts", index), str(error))
    for index, endpoint in enumerate(review.endpoints):
        for key, message in _problems_of_endpoint(endpoint, hosts):
            yield document.problem(("review", "endpoints", index, key), message)


def _problems_of_endpoint(endpoint: EndpointSettings, internal_hosts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The key and the message of each problem."""
    if not is_reference(endpoint.url):
        try:
            addresses.check_address(endpoint.url, internal_hosts)
        except ConfigError as error:
            yield "url", str(error)
    for key in ("secret", "routing_key"):
        if (secret := getattr(endpoint, key)) is not None and not is_reference(secret):
            yield key, REFERENCE_REQUIRED
    if endpoint.template not in TEMPLATES and not endpoint.template.endswith(".j2"):
        yield "template", f"one of {', '.join(TEMPLATES)}, or a file that ends in .j2, got {endpoint.template!r}"
    if endpoint.template == "generic" and endpoint.secret is None:
        yield "secret", "webhooks must be signed, or anybody could send them: add a `secret`"
    if (endpoint.template == "pagerduty") != (endpoint.routing_key is not None):
        yield "routing_key", "the template pagerduty needs one, and no other template has any"


def _page_problems(document: Document, page: PageSettings) -> Iterator[str]:
    keys = ("review", "page", "reviewers")
    yield from duplicate_names(document, keys, [reviewer.name for reviewer in page.reviewers])
    for index, reviewer in enumerate(page.reviewers):
        if reviewer.token is None and page.proxy is None:
            message = "without a `token`, and with no `proxy` that signs people in, nobody can sign in by this name"
            yield document.problem((*keys, index), f"{message}; add one")
        elif reviewer.token is not None and not (is_reference(reviewer.token) or is_token_hash(reviewer.token)):
            message = "not a token's hash (sha256:...), nor a reference to one; make one with"
            yield document.problem((*keys, index, "token"), f"{message} `ilis-guard reviewer-token`")
    if page.verdict_secret is not None and not is_reference(page.verdict_secret):
        yield document.problem(("review", "page", "verdict_secret"), REFERENCE_REQUIRED)
