"""From a delivery to a try: its message is made, in the endpoint's form, signed, and sent once."""

import asyncio
from collections.abc import Sequence

from ilis_guard.config import addresses, secrets
from ilis_guard.config.review import EndpointSettings
from ilis_guard.errors import ConfigError, ReviewError
from ilis_guard.review import signing
from ilis_guard.review.deliveries import Delivery, Tried
from ilis_guard.review.queue import ReviewQueue
from ilis_guard.review.sending import Answer, Sender
from ilis_guard.review.templates import Message, template_for


class Post:
    """Knows the endpoints of a queue, and what each wants to be sent.

    Args:
        queue: whose endpoints.
        internal_hosts: see ``review.internal_hosts`` in guard.yaml.
        page: address of the reviewers' page; None where there is none.

    Raises:
        ConfigError: a template can't be used, or an internal host is none.
    """

    def __init__(self, queue: ReviewQueue, *, internal_hosts: Sequence[str], page: str | None) -> None:
        self._queue = queue
        self._ledger = queue._ledger  # noqa: SLF001 - the review room's own
        self._page = page
        self._endpoints = {endpoint.name: endpoint for endpoint in self._ledger.endpoints}
        self._templates = {name: template_for(endpoint) for name, endpoint in self._endpoints.items()}
        self.internal_hosts = frozenset(addresses.normalize_host(name) for name in internal_hosts)

    @property
    def endpoints(self) -> Sequence[str]:
        """Their names."""
        return tuple(self._endpoints)

    async def send(self, sender: Sender, delivery: Delivery) -> Tried | None:
        """Try once; None where the ticket couldn't be read, which is no fault of the endpoint's."""
        settings = self._endpoints[delivery.endpoint]
        try:
            message = await self._message(delivery, settings)
        except ReviewError:
            return None
        try:
            answer = await self._post(sender, message, settings)
        except ConfigError as error:
            answer = Answer(error=str(error))
        except Exception as error:  # noqa: BLE001 - no delivery may stop the others; its words may quote the prompt
            answer = Answer(error=f"{type(error).__name__} while the message was made or sent")
        return Tried(delivery=delivery, answer=answer, at=self._ledger.clock())

    async def _message(self, delivery: Delivery, settings: EndpointSettings) -> Message:
        return Message(
            id=delivery.id,
            type=delivery.event,
            at=delivery.created_at,
            data=delivery.data,
            link=None if self._page is None else f"{self._page.rstrip('/')}/tickets/{delivery.ticket}",
            record=await asyncio.to_thread(self._queue.get, delivery.ticket) if settings.full else None,
        )

    async def _post(self, sender: Sender, message: Message, settings: EndpointSettings) -> Answer:
        body = self._templates[settings.name](message)
        now = self._ledger.clock()
        # Read anew each time: addresses and secrets change without a restart.
        url = secrets.resolve_secret(settings.url)
        secret = None if settings.secret is None else secrets.resolve_secret(settings.secret)
        headers = signing.sign(secret, id=message.id, at=now, body=body)
        # What an endpoint says may repeat what it was told, and where.
        is_told_a_secret = settings.routing_key is not None or secrets.is_reference(settings.url)
        return await sender.send(url, headers, body, now=now, may_quote=not settings.full and not is_told_a_secret)
