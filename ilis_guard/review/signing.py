"""Standard Webhooks' signatures: what we send is signed with them, and what comes in is checked by them.

A secret is `whsec_` and 24 to 64 random bytes in base64. Two secrets with white space between them, the newer one
first, make a rotation: what is sent carries a signature by each, and what comes in may carry one by either.
"""

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from standardwebhooks import Webhook, WebhookVerificationError

from ilis_guard.errors import ConfigError, WebhookSignatureError

_PREFIX: Final = "whsec_"
_FEWEST_BYTES: Final = 24
_MOST_BYTES: Final = 64
_MOST_SECRETS: Final = 2


def sign(secret: str | None, *, id: str, at: float, body: str) -> dict[str, str]:  # noqa: A002 - the header's word for it
    """The headers that go with a message.

    Args:
        secret: one secret, or two during a rotation; None for an endpoint that checks no signature.
        id: the same on every try, so that whoever receives it twice can tell.
        at: seconds since the epoch of this try.
        body: exactly what is sent.

    Raises:
        ConfigError: the secret isn't one; it isn't shown.
    """
    headers = {"webhook-id": id, "webhook-timestamp": str(int(at))}
    if secret is None:
        return headers
    moment = datetime.fromtimestamp(at, UTC)
    return headers | {"webhook-signature": " ".join(key.sign(id, moment, body) for key in _keys(secret))}


def verify(secret: str, headers: Mapping[str, str], body: bytes) -> str:
    """Check that whoever knows the secret sent this within the last 5 minutes.

    Signatures are compared in constant time. The clock may be 5 minutes off in the other direction, too.

    Args:
        secret: one secret, or two during a rotation.
        headers: of the request, in any case.
        body: exactly what came.

    Returns:
        The message's id: the same again is the same message again.

    Raises:
        WebhookSignatureError: it wasn't signed so, or not lately.
        ConfigError: the secret isn't one; it isn't shown.
    """
    found = {name.lower(): value for name, value in headers.items()}
    reason = ""
    for key in _keys(secret):
        try:
            key.verify(body, found, json_parse=False)
        except WebhookVerificationError as error:
            reason = str(error)
        except ValueError:
            # No pair of version and signature, no base64, no UTF-8: the library leaves those to its caller.
            reason = "Malformed signature or body"
        else:
            return found["webhook-id"]
    raise WebhookSignatureError(
        f"the webhook's signature doesn't hold: {reason}; sign `id.timestamp.body` with the shared secret, as "
        "Standard Webhooks does, and check both clocks"
    )


def check(secret: str) -> None:
    """Check that a text is one secret, or two.

    Raises:
        ConfigError: it isn't; it isn't shown.
    """
    _keys(secret)


def _keys(secret: str) -> list[Webhook]:
    texts = secret.split()
    if not 1 <= len(texts) <= _MOST_SECRETS:
        raise ConfigError(
            f"the webhook's secret must be one, or two with white space between them, got {len(texts)}; keep the two "
            "newest"
        )
    return [Webhook(_bytes_of(text)) for text in texts]


def _bytes_of(text: str) -> bytes:
    """The library decodes any text at all; one that isn't a secret would make a weak key in silence."""
    encoded = text.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not _FEWEST_BYTES <= len(key) <= _MOST_BYTES:
        raise ConfigError(
            f"a webhook's secret must be {_FEWEST_BYTES} to {_MOST_BYTES} random bytes in base64, which it isn't; make "
            'one with: echo "whsec_$(openssl rand -base64 32)"'
        )
    return key
