"""Standard Webhooks' signatures: sign outgoing messages and verify incoming ones.

A secret is `whsec_` and 24 to 64 random bytes in base64. Two secrets with white space between them, the newer one
first, make a rotation: outgoing messages carry a signature by each, incoming ones may carry one by either.
"""

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from standardwebhooks import Webhook, WebhookVerificationError

from ilis_guard.errors import ConfigError, WebhookSignatureError

_PREFIX: Final = "whsec_"
_MIN_BYTES: Final = 24
_MAX_BYTES: Final = 64
_MAX_SECRETS: Final = 2


def sign(secret: str | None, *, id: str, at: float, body: str) -> dict[str, str]:  # noqa: A002 - the header's word for it
    """Return the headers that go with a message.

    Args:
        secret: one secret, or two during a rotation; None for an endpoint that checks no signature.
        id: the same on every try, so that receivers can recognise a repetition.
        at: time of this try, seconds since the epoch.
        body: exactly as sent.

    Raises:
        ConfigError: the secret is malformed; the message doesn't show it.
    """
    headers = {"webhook-id": id, "webhook-timestamp": str(int(at))}
    if secret is None:
        return headers
    moment = datetime.fromtimestamp(at, UTC)
    return headers | {"webhook-signature": " ".join(key.sign(id, moment, body) for key in _keys(secret))}


def verify(secret: str, headers: Mapping[str, str], body: bytes) -> str:
    """Check that a holder of the secret sent this within the last 5 minutes.

    Signatures are compared in constant time. The sender's clock may also be up to 5 minutes ahead.

    Args:
        secret: one secret, or two during a rotation.
        headers: of the request, in any case.
        body: exactly as received.

    Returns:
        The message's id; the same id again means the same message again.

    Raises:
        WebhookSignatureError: no signature is valid, or it is too old or too new.
        ConfigError: the secret is malformed; the message doesn't show it.
    """
    found = {name.lower(): value for name, value in headers.items()}
    reason = ""
    for key in _keys(secret):
        try:
            key.verify(body, found, json_parse=False)
        except WebhookVerificationError as error:
            reason = str(error)
        except ValueError:
            # The library lets its own parsing errors through: no version and signature, no base64, no UTF-8.
            reason = "Malformed signature or body"
        else:
            return found["webhook-id"]
    raise WebhookSignatureError(
        f"the webhook's signature doesn't hold: {reason}; sign `id.timestamp.body` with the shared secret, as "
        "Standard Webhooks does, and check both clocks"
    )


def check(secret: str) -> None:
    """Check that a text holds one secret, or two.

    Raises:
        ConfigError: it doesn't; the message doesn't show it.
    """
    _keys(secret)


def _keys(secret: str) -> list[Webhook]:
    texts = secret.split()
    if not 1 <= len(texts) <= _MAX_SECRETS:
        raise ConfigError(
            f"the webhook's secret must be one, or two with white space between them, got {len(texts)}; keep the two "
            "newest"
        )
    return [Webhook(_decode(text)) for text in texts]


def _decode(text: str) -> bytes:
    """Decode a secret strictly: the library decodes any text, and would silently make a weak key."""
    encoded = text.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise ConfigError(
            f"a webhook's secret must be {_MIN_BYTES} to {_MAX_BYTES} random bytes in base64, which it isn't; make "
            'one with: echo "whsec_$(openssl rand -base64 32)"'
        )
    return key
