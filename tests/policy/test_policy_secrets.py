"""Secrets in a policy are found anywhere, and never shown."""

import base64
import secrets
import string
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from ilis_guard.config.secrets import find_secrets
from ilis_guard.config.strict_yaml import MAX_BYTES
from ilis_guard.errors import PolicyError
from ilis_guard.policy import Policy

LETTERS = string.ascii_letters + string.digits


def some(length: int, alphabet: str = LETTERS) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length - 1)) + "7"


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


# Made anew for each run, so that no scanner of repositories takes this file for a leak.
SECRETS: dict[str, Callable[[], str]] = {
    "a password in a URL": lambda: f"https://tickets:{some(12)}@support.example/queue",
    "a private key": lambda: "-----BEGIN " + "RSA PRIVATE KEY-----",
    "a JSON web token": lambda: ".".join([encoded('{"alg":"HS256"}'), encoded('{"sub":"1234567890"}'), some(43)]),
    "an AWS access key": lambda: "AKIA" + some(16, string.ascii_uppercase),
    "an Anthropic or OpenAI API key": lambda: "sk-" + "proj-" + some(48),
    "a GitHub token": lambda: "ghp_" + some(36),
    "a GitLab token": lambda: "glpat-" + some(20),
    "a Google API key": lambda: "AIza" + some(35),
    "a Hugging Face token": lambda: "hf_" + "".join(secrets.choice(string.ascii_letters) for _ in range(34)),
    "an npm token": lambda: "npm_" + some(36),
    "a PyPI token": lambda: "pypi-" + some(120),
    "a SendGrid key": lambda: f"SG.{some(22)}.{some(43)}",
    "a Slack token": lambda: "xoxb-" + some(40),
    "a Slack webhook": lambda: f"https://hooks.slack.com/services/T{some(8)}/B{some(8)}/{some(24)}",
    "a Stripe key": lambda: "sk_live_" + some(24),
    "a webhook's signing secret": lambda: "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
    "a bearer token": lambda: "Bearer " + some(32),
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize(
    "text",
    [
        "version: 1\nname: p\nrules:\n  - {id: a, do: abstain, say: 'Use SECRET now.'}\n",
        "version: 1\nname: p\nrules:\n  - {id: a, do: abstain, when: \"labels.key == 'SECRET'\"}\n",
        "# SECRET\nversion: 1\nname: p\nrules:\n  - {id: a, do: abstain}\n",
        "version: 1\nname: p\ntoken: 'SECRET'\nrules:\n  - {id: a, do: abstain}\n",
        "version: 2\nname: 'SECRET'\n",
    ],
    ids=["say", "when", "comment", "unknown key", "other version"],
)
def test_a_secret_is_found_in_any_place_and_not_shown(kind: str, text: str) -> None:
    secret = SECRETS[kind]()
    with pytest.raises(PolicyError) as caught:
        Policy.parse(text.replace("SECRET", secret), path="p.yaml")
    message = str(caught.value)
    before, _, _ = text.partition("SECRET")
    line = before.count("\n") + 1
    column = len(before) - before.rfind("\n") + (len("https://") if kind == "a Slack webhook" else 0)
    assert message == (
        f"p.yaml:{line}:{column}: this looks like {kind}: a policy needs no secrets, and whoever reads it sees them; "
        "take it out, and revoke it"
    )
    assert secret not in message


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize(
    ("written", "text", "place"),
    [
        (lambda secret: f"{secret[:9]}\\x{ord(secret[9]):02x}{secret[10:]}", 'name: "SECRET"\nrules: []', "3:7"),
        (lambda secret: f"{secret[:9]}\\\n  {secret[9:]}", 'rules: [{id: a, do: abstain, say: "SECRET"}]', "3:35"),
        (lambda secret: f"{secret[:9]}\\u{ord(secret[9]):04x}{secret[10:]}", '"SECRET": 1\nrules: []', "3:1"),
    ],
    ids=["escaped", "over two lines", "key"],
)
def test_an_escaped_secret_is_found_at_its_value(
    kind: str, written: Callable[[str], str], text: str, place: str
) -> None:
    secret = SECRETS[kind]()
    with pytest.raises(PolicyError) as caught:
        Policy.parse(f"version: 1\n\n{text}\n".replace("SECRET", written(secret)), path="p.yaml")
    lines = str(caught.value).splitlines()
    assert f"p.yaml:{place}: this looks like {kind}: a policy needs no secrets" in str(caught.value)
    assert all("this looks like" in line for line in lines if line.startswith("p.yaml:"))
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "Reset your password: https://example.com/reset?user=a@b.example",
        "write to support@example.com or https://example.com:8443/help@desk",
        "postgresql://app:${PASSWORD}@db/tickets",
        "a token is a secret; api_key=none, password=none",
        "sk-learn-based-scorers-are-fitted-elsewhere",
        "risk-averse-customers-are-asked-first-of-all",
        "the bearer authentication-and-authorisation scheme",
        "fingerprint 44d818a4765d8f2b, decision 3f2504e04f8911d39a0c0305e82c3301",
        "uncertainty < 0.25 && typicality >= 0.01",
    ],
)
def test_a_text_about_secrets_is_none(text: str) -> None:
    assert list(find_secrets(text)) == []


@given(text=st.text(alphabet="abAZ09 .,:/@-_'\n", max_size=200))
def test_any_text_can_be_looked_through(text: str) -> None:
    assert all(0 <= index < len(text) for index, _ in find_secrets(text))


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "a.",
        "eyJ-",
        "eyJaaaaaaaaaa.a",
        "sk-",
        "bearer ",
        "://",
        "a://b:",
        "SG.-",
        "SG.aaaaaaaaaaaaaaaaaaaaaa.",
        "A",
    ],
)
def test_the_longest_file_is_looked_through(piece: str) -> None:
    """In a fraction of a second each; with one part unbounded, this test wouldn't end within the hour."""
    assert list(find_secrets(piece * (MAX_BYTES // len(piece)))) == []
