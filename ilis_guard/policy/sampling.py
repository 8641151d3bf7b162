"""Samples without memory: a request's sampling key alone decides, so that the result can be computed again later."""

import hashlib
from typing import Final

AUDITS: Final = "(audit)"
"""What audits are drawn with; no rule has this id."""


def drawn(sampling_key: str, salt: str) -> float:
    """A number from 0 to below 1, the same for one `sampling_key` and `salt` on every machine and in every release.

    The first 53 bits of SHA-256 over the salt's length, the salt and the key. Over keys it is uniform; with another
    salt it is independent of this one. A request is in a sample of a share where the number lies below that share, so
    who is in a smaller sample is in every larger one of the same salt.

    Args:
        sampling_key: what is drawn from, a decision's id for instance.
        salt: what is drawn for, a rule's id for instance.
    """
    drawn_from = f"{len(salt)}:{salt}{sampling_key}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.sha256(drawn_from).digest()[:8]) >> 11) / 2**53
