"""Samples without memory: whether a request is drawn follows from its lot alone, so it can be told again later."""

import hashlib
from typing import Final

AUDITS: Final = "(audit)"
"""What audits are drawn with; no rule has this id."""


def drawn(lot: str, salt: str) -> float:
    """A number from 0 to below 1, the same for the same `lot` and `salt` on every machine and in every release.

    The first 53 bits of SHA-256 over the salt's length, the salt and the lot. Over lots it is uniform; with another
    salt it is independent of this one. A request is in a sample of a share where the number lies below that share, so
    who is in a smaller sample is in every larger one of the same salt.

    Args:
        lot: what is drawn from, a decision's id for instance.
        salt: what is drawn for, a rule's id for instance.
    """
    drawn_from = f"{len(salt)}:{salt}{lot}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.sha256(drawn_from).digest()[:8]) >> 11) / 2**53
