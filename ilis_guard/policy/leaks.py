"""Secrets that were written into a file, told by their shapes.

Only shapes that hardly anything else has: a policy's messages may well speak of passwords. Their parts are bounded,
so that no text takes long.
"""

import re
from collections.abc import Iterator
from typing import Final

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
_ANY: Final = re.compile(
    "|".join(f"(?P<shape{number}>{shape})" for number, shape in enumerate(_SHAPES.values())), re.ASCII
)
_KINDS: Final = dict(zip((f"shape{number}" for number in range(len(_SHAPES))), _SHAPES, strict=True))


def leaks(text: str) -> Iterator[tuple[int, str]]:
    """The secrets in a text: where each starts (characters from 0), and what it is. Never the secret itself."""
    for match in _ANY.finditer(text):
        yield match.start(), _KINDS[str(match.lastgroup)]


def hidden(value: str, text: str) -> Iterator[str]:
    """What secrets are in a value that don't stand so in the text that it comes from: escaped, or over two lines."""
    for match in _ANY.finditer(value):
        if match.group() not in text:
            yield _KINDS[str(match.lastgroup)]
