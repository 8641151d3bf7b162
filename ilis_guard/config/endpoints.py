"""What is wrong with an endpoint in guard.yaml, as far as can be told without asking it. No secret is shown."""

from collections.abc import Collection, Iterator

from ilis_guard.config import addresses, secrets
from ilis_guard.config.queues import TEMPLATES, EndpointSettings
from ilis_guard.errors import ConfigError

_SAY_WHERE = "say where the secret stands, `${NAME}` in the environment or `file:PATH`, and not the secret itself"


def problems(endpoint: EndpointSettings, internal_hosts: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each problem: the key it is at, and what to do.

    Args:
        endpoint: as it stands in the file.
        internal_hosts: hosts that need no https, as `addresses.host` writes them.
    """
    if not secrets.is_reference(endpoint.url):
        try:
            addresses.check(endpoint.url, internal_hosts)
        except ConfigError as error:
            yield "url", str(error)
    for key, secret in (("secret", endpoint.secret), ("routing_key", endpoint.routing_key)):
        if secret is not None and not secrets.is_reference(secret):
            yield key, _SAY_WHERE
    if endpoint.template not in TEMPLATES and not endpoint.template.endswith(".j2"):
        yield "template", f"one of {', '.join(TEMPLATES)}, or a file that ends in .j2, got {endpoint.template!r}"
    if endpoint.template == "generic" and endpoint.secret is None:
        yield "secret", "what is sent must be signed, or anybody could send it: add a `secret`"
    if (endpoint.template == "pagerduty") != (endpoint.routing_key is not None):
        yield "routing_key", "the template pagerduty needs one, and no other template has any"
