"""Secrets in guard.yaml: references to them, and hashes of tokens and API keys.

The file holds references. Each use reads the secret again, so that secrets can change while the process runs: files
change when whoever mounts them writes them, environment variables only with the process.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from ilis_guard.config.base import absolute_path, relative_to_file
from ilis_guard.errors import ConfigError

REFERENCE_REQUIRED: Final = (
    "give a reference to the secret, `${NAME}` in the environment or `file:PATH`, and not the secret itself"
)
"""The problem of a key that holds a secret in plain text. It doesn't quote the secret."""

_ENVIRONMENT: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FILE: Final = "file:"
_TOKEN_HASHES: Final = re.compile(r"sha256:[0-9a-f]{64}(?:\s+sha256:[0-9a-f]{64})?")


def is_reference(text: str) -> bool:
    """Whether a text refers to a secret: ``${NAME}`` in the environment, or ``file:PATH``."""
    return _ENVIRONMENT.fullmatch(text) is not None or (text.startswith(_FILE) and len(text) > len(_FILE))


def resolve_secret(text: str) -> str:
    """Read the secret that a reference names, without the white space around it; return any other text unchanged.

    Raises:
        ConfigError: the variable isn't set, or the file can't be read, or it is empty.
    """
    if not is_reference(text):
        return text
    if match := _ENVIRONMENT.fullmatch(text):
        secret = os.environ.get(match[1], "").strip()
    else:
        try:
            secret = Path(text.removeprefix(_FILE)).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"the secret {text!r} can't be read: {type(error).__name__}; check it") from None
    if not secret:
        raise ConfigError(f"the secret {text!r} is empty or isn't there; set it, then try again")
    return secret


def with_absolute_path(text: str, folder: Path) -> str:
    """Resolve the path of a ``file:`` reference against a folder; return any other text unchanged."""
    if not is_reference(text) or not text.startswith(_FILE):
        return text
    return f"{_FILE}{absolute_path(text.removeprefix(_FILE), folder)}"


SecretReference = Annotated[str, Field(min_length=1), relative_to_file(with_absolute_path)]
"""``${NAME}`` in the environment or ``file:PATH``. Some keys also take the value itself."""


def hash_token(token: str) -> str:
    """Hash a token or an API key as guard.yaml holds it. Both are long and random: a slow hash would add nothing."""
    return f"sha256:{hashlib.sha256(token.encode(errors='replace')).hexdigest()}"


def is_token_hash(text: str) -> bool:
    """Whether a text is one hash, or two with white space between them while the token is being changed."""
    return _TOKEN_HASHES.fullmatch(text) is not None


def read_token_hashes(text: str, *, command: str) -> tuple[str, ...]:
    """Read the hashes of the tokens that are valid now: one, or two while the token is being changed.

    Args:
        text: the hashes, or a reference to them.
        command: makes a token and its hash, for the message: ``ilis-guard api-key``.

    Raises:
        ConfigError: the reference can't be resolved, or holds no hash.
    """
    hashes = resolve_secret(text)
    if not is_token_hash(hashes):
        raise ConfigError(f"the value at {text!r} is not the hash of a token (sha256:...); make one with `{command}`")
    return tuple(hashes.split())


def matches_token_hash(given: str, hashes: Iterable[str]) -> bool:
    """Whether a token's hash is one of these. The time that this takes depends on their number only."""
    matches = [hmac.compare_digest(given, known) for known in hashes]
    return any(matches)
