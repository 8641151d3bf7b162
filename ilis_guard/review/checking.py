"""What is wrong with a receiver in guard.yaml, as far as can be told without asking it. No secret is shown."""

from collections.abc import Collection, Iterator

from ilis_guard import secrets
from ilis_guard.errors import ConfigError
from ilis_guard.review import addresses
from ilis_guard.review.settings import TEMPLATES, ReceiverSettings

_SAY_WHERE = "say where the secret stands, `${NAME}` in the environment or `file:PATH`, and not the secret itself"


def problems(receiver: ReceiverSettings, internal_hosts: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each problem: the key it is at, and what to do.

    Args:
        receiver: as it stands in the file.
        internal_hosts: hosts that need no https, as `addresses.host` writes them.
    """
    if not secrets.is_reference(receiver.url):
        try:
            addresses.check(receiver.url, internal_hosts)
        except ConfigError as error:
            yield "url", str(error)
    for key, secret in (("secret", receiver.secret), ("routing_key", receiver.routing_key)):
        if secret is not None and not secrets.is_reference(secret):
            yield key, _SAY_WHERE
    if receiver.template not in TEMPLATES and not receiver.template.endswith(".j2"):
        yield "template", f"one of {', '.join(TEMPLATES)}, or a file that ends in .j2, got {receiver.template!r}"
    if receiver.template == "generic" and receiver.secret is None:
        yield "secret", "what is sent must be signed, or anybody could send it: add a `secret`"
    if (receiver.template == "pagerduty") != (receiver.routing_key is not None):
        yield "routing_key", "the template pagerduty needs one, and no other template has any"
