"""Who gets in, by token or by proxy, and who doesn't."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from ilis_guard.config.review import PageSettings, ProxySettings, ReviewerSettings
from ilis_guard.config.secrets import hash_token
from ilis_guard.errors import ConfigError
from ilis_guard_server.auth import (
    FAILURE_SECONDS,
    MAX_FAILURES,
    MAX_SESSIONS,
    SESSION_SECONDS,
    Sessions,
    SignInLimit,
    Users,
)
from tests.server.conftest import Start
from tests.server.website import TOKENS, Clock, Site, field_of, sign_in

PROXY = ProxySettings(header="X-Reviewer", addresses=("127.0.0.1",))


def test_a_signed_out_browser_signs_in_and_comes_back(site: Site) -> None:
    with site.client() as client:
        away = client.get("/tickets?queue=urgent")
        assert (away.status_code, away.headers["location"]) == (303, "/sign-in?next=%2Ftickets%3Fqueue%3Durgent")
        form = client.get(away.headers["location"]).text
        back = client.post(
            "/sign-in",
            data={"token": TOKENS["ana"], "form": field_of(form, "form"), "next": field_of(form, "next")},
        )
        assert (back.status_code, back.headers["location"]) == (303, "/tickets?queue=urgent")
        assert "ana" in client.get("/tickets").text


@pytest.mark.parametrize(
    "elsewhere",
    ["https://evil.example", "//evil.example", "/\\evil.example", "/tickets/../x", "/sign-out", "/tickets\n"],
)
def test_signing_in_never_redirects_to_another_site(site: Site, elsewhere: str) -> None:
    with site.client() as client:
        assert field_of(client.get("/sign-in", params={"next": elsewhere}).text, "next") == "/tickets"
        response = sign_in(client, TOKENS["ana"], next=elsewhere)
        assert response.headers["location"] == "/tickets"


def test_the_cookie_is_for_this_site_alone(site: Site, start: Start, settings: PageSettings) -> None:
    with site.client() as client:
        (cookie,) = sign_in(client, TOKENS["ana"]).headers.get_list("set-cookie")
    assert cookie.startswith("ilis_guard=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    with start(settings.model_copy(update={"url": "https://review.example.org"})) as secure, secure.client() as client:
        response = client.get("/sign-in")
        (cookie,) = response.headers.get_list("set-cookie")
        assert cookie.startswith("__Host-ilis_guard_form=")
        assert {"HttpOnly", "SameSite=strict", "Path=/", "Secure"} <= set(cookie.split("; "))
        assert response.headers["strict-transport-security"] == "max-age=31536000"


def test_a_wrong_token_is_refused_and_not_logged(site: Site, logged: list[Any]) -> None:
    with site.client() as client:
        response = sign_in(client, "guessed-token")
        assert response.status_code == 401
        assert "Nobody here has this token." in response.text
        assert client.get("/tickets").status_code == 303
    refused = [event for event in logged if event["event"] == "ilis_guard.sign_in.failed"]
    assert [(event["address"], event["reason"]) for event in refused] == [("127.0.0.1", "wrong token")]
    assert "guessed-token" not in str(logged)


def test_after_many_wrong_tokens_an_address_has_to_wait(site: Site) -> None:
    with site.client() as client:
        for _ in range(MAX_FAILURES):
            assert sign_in(client, "guessed").status_code == 401
        response = sign_in(client, TOKENS["ana"])
        assert response.status_code == 429
        assert 0 < int(response.headers["retry-after"]) <= FAILURE_SECONDS
        assert client.get("/tickets").status_code == 303


def test_the_sign_in_limit_ends_with_time_and_counts_by_address() -> None:
    clock = Clock()
    limit = SignInLimit(clock)
    for _ in range(MAX_FAILURES):
        assert limit.seconds_to_wait("10.0.0.1") == 0
        limit.add_failure("10.0.0.1")
        clock.now += 1
    assert limit.seconds_to_wait("10.0.0.1") == FAILURE_SECONDS - MAX_FAILURES
    assert limit.seconds_to_wait("10.0.0.2") == 0
    clock.now += FAILURE_SECONDS - MAX_FAILURES
    assert limit.seconds_to_wait("10.0.0.1") == 0
    limit.add_failure("10.0.0.1")
    assert limit.seconds_to_wait("10.0.0.1") > 0


@pytest.mark.parametrize(
    ("form", "headers"),
    [("", {}), ("made up", {}), (None, {"sec-fetch-site": "cross-site"}), (None, {"sec-fetch-site": "same-site"})],
)
def test_no_other_sites_form_signs_anybody_in(site: Site, form: str | None, headers: dict[str, str]) -> None:
    with site.client() as client:
        own = field_of(client.get("/sign-in").text, "form")
        data = {"token": TOKENS["ana"], "form": own if form is None else form}
        response = client.post("/sign-in", data=data, headers=headers)
        assert response.status_code == 403
        assert client.get("/tickets").status_code == 303


def test_a_form_without_the_cookie_signs_nobody_in(site: Site) -> None:
    with site.client() as client:
        form = field_of(client.get("/sign-in").text, "form")
        client.cookies.clear()
        assert client.post("/sign-in", data={"token": TOKENS["ana"], "form": form}).status_code == 403


def test_signing_out_ends_the_session_and_not_only_the_cookie(site: Site) -> None:
    ana = site.signed_in("ana")
    kept = dict(ana.client.cookies)
    assert ana.post("/sign-out").headers["location"] == "/sign-in"
    assert ana.get("/tickets").status_code == 303
    with site.client(cookies=kept) as thief:
        assert thief.get("/tickets").status_code == 303


def test_a_session_ends_by_itself_and_the_oldest_makes_room() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    key = sessions.open("ana", "sha256:x")
    clock.now += SESSION_SECONDS - 1
    assert (found := sessions.get(key)) is not None
    assert found.name == "ana"
    clock.now += 1
    assert sessions.get(key) is None
    keys = [sessions.open("ana", "sha256:x") for _ in range(MAX_SESSIONS + 1)]
    assert sessions.get(keys[0]) is None
    assert sessions.get(keys[1]) is not None


def test_tokens_can_change_while_the_server_runs(start: Start, settings: PageSettings, tmp_path: Path) -> None:
    hashes = tmp_path / "ana.hash"
    hashes.write_text(hash_token("old") + "\n")
    reviewer = ReviewerSettings(name="ana", token=f"file:{hashes}")
    with (
        start(settings.model_copy(update={"reviewers": (reviewer,)})) as site,
        site.client() as old,
        site.client() as new,
    ):
        assert sign_in(old, "old").status_code == 303
        hashes.write_text(f"{hash_token('new')} {hash_token('old')}\n")
        assert sign_in(new, "new").status_code == 303
        assert old.get("/tickets").status_code == 200
        hashes.write_text(hash_token("new"))
        assert old.get("/tickets").status_code == 303
        assert new.get("/tickets").status_code == 200


def test_a_lost_hash_shuts_out_nobody_else(
    start: Start, settings: PageSettings, tmp_path: Path, logged: list[Any]
) -> None:
    (tmp_path / "ben.hash").write_text(hash_token("ben"))
    reviewers = (ReviewerSettings(name="ben", token=f"file:{tmp_path}/ben.hash"), *settings.reviewers[:1])
    with start(settings.model_copy(update={"reviewers": reviewers})) as site, site.client() as client:
        (tmp_path / "ben.hash").unlink()
        assert sign_in(client, "ben").status_code == 401
        assert sign_in(client, TOKENS["ana"]).status_code == 303
    assert {event["name"] for event in logged if event["event"] == "ilis_guard.reviewer.unreadable"} == {"ben"}


@pytest.mark.parametrize("text", ["hunter2", "", "sha256:12"])
def test_a_malformed_hash_keeps_the_server_from_starting(tmp_path: Path, text: str) -> None:
    (tmp_path / "ana.hash").write_text(text)
    reviewer = ReviewerSettings(name="ana", token=f"file:{tmp_path}/ana.hash")
    with pytest.raises(ConfigError) as caught:
        Users(PageSettings(url="https://x.example", reviewers=(reviewer,)))
    assert "hunter2" not in str(caught.value)


def test_a_trusted_proxy_signs_people_in(start: Start, settings: PageSettings) -> None:
    with start(settings.model_copy(update={"proxy": PROXY})) as site:
        with site.client(headers={"X-Reviewer": "vera"}, follow_redirects=True) as client:
            shown = client.get("/tickets")
            assert shown.status_code == 200
            assert "vera" in shown.text
            assert "Sign out" not in shown.text  # the next request would sign her in again
            # The session is worth nothing without the proxy's word, nor with its word for somebody else.
            cookies = dict(client.cookies)
        for headers in ({}, {"X-Reviewer": "ana"}):
            with site.client(cookies=cookies, headers=headers) as other:
                assert other.get("/tickets").status_code == 303


@pytest.mark.parametrize(
    "headers", [[("X-Reviewer", "mallory")], [("X-Reviewer", "")], [("X-Reviewer", "ana"), ("X-Reviewer", "ben")], []]
)
def test_ambiguous_or_unknown_proxy_names_are_not_signed_in(
    start: Start, settings: PageSettings, headers: list[tuple[str, str]]
) -> None:
    with start(settings.model_copy(update={"proxy": PROXY})) as site, site.client() as client:
        assert client.get("/sign-in", headers=httpx2.Headers(headers)).status_code == 200


@pytest.mark.parametrize("proxy", [None, ProxySettings(header="X-Reviewer", addresses=("10.0.0.0/8",))])
def test_the_header_counts_for_nothing_from_elsewhere(
    start: Start, settings: PageSettings, proxy: ProxySettings | None
) -> None:
    forged = {"X-Reviewer": "ana", "X-Forwarded-For": "10.0.0.1", "Forwarded": "for=10.0.0.1"}
    with start(settings.model_copy(update={"proxy": proxy})) as site, site.client(headers=forged) as client:
        assert client.get("/sign-in").status_code == 200


def test_a_link_from_another_site_comes_in_by_a_page_of_ours(site: Site) -> None:
    with site.client() as client:
        hop = client.get("/tickets?queue=urgent", headers={"sec-fetch-site": "cross-site"})
        assert hop.status_code == 200
        assert '<meta http-equiv="refresh" content="0; url=/tickets?queue=urgent">' in hop.text


def test_a_part_of_a_page_sends_the_whole_page_to_sign_in(site: Site) -> None:
    with site.client() as client:
        response = client.get("/tickets", headers={"hx-request": "true"})
        assert (response.status_code, response.headers["hx-redirect"], response.text) == (401, "/sign-in", "")
