"""Secrets: references to them, hashes of tokens and API keys, and the shapes of those that no file may hold.

guard.yaml holds references. Each use reads the secret again, so that secrets can change while the process runs: files
change when whoever mounts them writes them, environment variables only with the process.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from ilis_guard.config.base import absolute_path, relative_to_file
from ilis_guard.config.strict_yaml import Document, Keys
from ilis_guard.errors import ConfigError

REFERENCE_REQUIRED: Final = (
    "give a reference to the secret, `${NAME}` in the environment or `file:PATH`, and not the secret itself"
)
"""The problem of a key that holds a secret in plain text. It doesn't quote the secret."""

_ENVIRONMENT: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FILE: Final = "file:"
_TOKEN_HASHES: Final = re.compile(r"sha256:[0-9a-f]{64}(?:\s+sha256:[0-9a-f]{64})?")

# Only shapes that hardly anything else has: a policy's messages may well speak of passwords. Their parts are bounded,
# so that no text takes long.
_SHAPES: Final = {
    "a password in a URL": r"\b[a-zA-Z][a-zA-Z0-9+.-]{0,20}://[^\s/@:'\"]{0,200}:(?!\$\{)[^\s/@'\"]{1,200}@",
    "a private key": r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY-----",
    "a JSON web token": r"\beyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "an Anthropic or OpenAI API key": r"\bsk-(?=[\w-]{0,200}\d)[\w-]{20,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,})",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "a Google API key": r"\bAIza[\w-]{35}",
    "a Hugging Face token": r"\bhf_[A-Za-z]{30,}",
    "an npm token": r"\bnpm_[A-Za-z0-9]{36}",
    "a PyPI token": r"\bpypi-[\w-]{50,}",
    "a SendGrid key": r"\bSG\.[\w-]{20,100}\.[\w-]{20,}",
    "a Slack token": r"\bxox[abeoprs]-[\w-]{10,}",
    "a Slack webhook": r"hooks\.slack\.com/(?:services|workflows)/\w{1,200}/\w{1,200}/\w",
    "a Stripe key": r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "a webhook's signing secret": r"\bwhsec_[A-Za-z0-9+/=]{24,}",
    "a bearer token": r"\b[Bb]earer\s(?=[\w.~+/-]{0,200}\d)[\w.~+/-]{20,}",
}
_ANY_SHAPE: Final = re.compile(
    "|".join(f"(?P<shape{number}>{shape})" for number, shape in enumerate(_SHAPES.values())), re.ASCII
)
_KINDS: Final = dict(zip((f"shape{number}" for number in range(len(_SHAPES))), _SHAPES, strict=True))


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


def secrets_in(document: Document) -> Iterator[tuple[str, str]]:
    """Find secrets in a file by their shapes, also in comments and keys: the place and the kind of each."""
    for index, kind in find_secrets(document.text):
        yield document.place_at(index), kind
    for place, value in _strings(document, (), document.data):
        for kind in _escaped_secrets(value, document.text):
            yield place, kind


def find_secrets(text: str) -> Iterator[tuple[int, str]]:
    """Find secrets in a text by their shapes: where each starts (characters from 0), and its kind."""
    for match in _ANY_SHAPE.finditer(text):
        yield match.start(), _KINDS[str(match.lastgroup)]


def _escaped_secrets(value: str, text: str) -> Iterator[str]:
    """The kinds of a value's secrets that its source text writes otherwise: escaped, or over two lines."""
    for match in _ANY_SHAPE.finditer(value):
        if match.group() not in text:
            yield _KINDS[str(match.lastgroup)]


def _strings(document: Document, keys: Keys, value: object) -> Iterator[tuple[str, str]]:
    """Every key and every string at or below some keys, with its place."""
    if isinstance(value, str):
        yield document.place(keys), value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(document, (*keys, index), item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield document.key_place((*keys, name)), name
            yield from _strings(document, (*keys, name), item)
