"""Standard Webhooks' signatures: signing, verification, rotation."""

import base64
import time
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from ilis_guard.errors import ConfigError, WebhookSignatureError
from ilis_guard.review.signing import check, sign, verify

OLD = "whsec_" + base64.b64encode(b"o" * 32).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 24).decode()
BODY = '{"type":"ticket.created","data":{"name":"Ångström"}}'


def _signed(secret: str = OLD, *, at: float | None = None) -> dict[str, str]:
    return sign(secret, id="msg_1", at=time.time() if at is None else at, body=BODY)


def test_the_example_of_the_specification_comes_out() -> None:
    headers = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        at=1614265330.9,
        body='{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_the_library_verifies_our_signatures() -> None:
    assert Webhook(OLD).verify(BODY, _signed())["type"] == "ticket.created"


def test_we_verify_the_librarys_signatures() -> None:
    now = datetime.now(UTC)
    headers = {
        "Webhook-Id": "msg_2",
        "Webhook-Timestamp": str(int(now.timestamp())),
        "Webhook-Signature": Webhook(OLD).sign("msg_2", now, BODY),
    }
    assert verify(OLD, headers, BODY.encode()) == "msg_2"


def test_during_a_rotation_both_secrets_sign_and_either_is_enough() -> None:
    both = f"{NEW}\n{OLD}"
    assert len(_signed(both)["webhook-signature"].split()) == 2
    for secret in (OLD, NEW, both):
        assert verify(secret, _signed(both), BODY.encode()) == "msg_1"
        assert verify(both, _signed(secret), BODY.encode()) == "msg_1"


def test_another_secret_is_refused() -> None:
    with pytest.raises(WebhookSignatureError, match="No matching signature"):
        verify(NEW, _signed(OLD), BODY.encode())


@pytest.mark.parametrize("seconds", [-301, 301])
def test_signatures_more_than_five_minutes_away_are_refused(seconds: float) -> None:
    with pytest.raises(WebhookSignatureError, match=r"too (old|new)"):
        verify(OLD, _signed(at=time.time() + seconds), BODY.encode())


@pytest.mark.parametrize("seconds", [-290, 290])
def test_clocks_may_differ_a_little(seconds: float) -> None:
    assert verify(OLD, _signed(at=time.time() + seconds), BODY.encode()) == "msg_1"


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "msg_2"},
        {"webhook-id": ""},
        {"webhook-timestamp": str(int(time.time()) + 1)},
        {"webhook-timestamp": "nan"},
        {"webhook-timestamp": "now"},
        {"webhook-timestamp": "9" * 400},
        {"webhook-signature": ""},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,?"},
        {"webhook-signature": "v1,a,b"},
        {"webhook-signature": "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
        {"webhook-signature": "v1,Ünot base64"},
    ],
)
def test_a_header_that_was_changed_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(WebhookSignatureError):
        verify(OLD, _signed() | change, BODY.encode())


@pytest.mark.parametrize("body", [BODY.encode() + b" ", b"", b"\xff\xfe"])
def test_a_body_that_was_changed_is_refused(body: bytes) -> None:
    with pytest.raises(WebhookSignatureError):
        verify(OLD, _signed(), body)


@pytest.mark.parametrize("header", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_refused(header: str) -> None:
    headers = _signed()
    del headers[header]
    with pytest.raises(WebhookSignatureError, match="Missing required headers"):
        verify(OLD, headers, BODY.encode())


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "correct horse battery staple",
        "hunter2!hunter2!hunter2!hunter2!",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        f"{OLD} {NEW} {OLD}",
        f"{OLD} short",
    ],
)
def test_an_invalid_secret_is_refused_and_not_shown(secret: str) -> None:
    for use in (check, _signed, lambda text: verify(text, _signed(), BODY.encode())):
        with pytest.raises(ConfigError) as caught:
            use(secret)
        assert all(word not in str(caught.value) for word in secret.split() if word != "whsec_")


def test_a_secret_needs_neither_prefix_nor_padding() -> None:
    bare = OLD.removeprefix("whsec_").rstrip("=")
    check(bare)
    assert verify(OLD, _signed(bare), BODY.encode()) == "msg_1"
