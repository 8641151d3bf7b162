"""What the page shows and takes, over plain HTTP."""

import asyncio
import html
import re
from pathlib import Path
from typing import Any

import pytest

from ilis_guard import Guard, Policy, Tier
from ilis_guard.config.review import PageSettings
from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FakeModel, FixedScorer
from ilis_guard.types import Action, Attempt, Message, Request, Ruling, Verdict
from ilis_guard_server.pages.view_models import Filters, thresholds_of
from tests.server.conftest import Ask, Start
from tests.server.servers import until
from tests.server.website import Clock, Site, lifelike

CHANGES = ("claim", "release", "verdict")


def put(review: ReviewQueue, decision: str, **changes: Any) -> str:
    """Escalate a plain request, of which a test changes what it is about; the ticket's id."""
    plain: dict[str, Any] = {
        "request": Request.of("What is the boiling point of gallium?"),
        "attempts": [Attempt(tier="small", text="2400 °C", uncertainty=0.4, typicality=0.2)],
        "queue": "default",
        "policy": "p",
        "rule": None,
        "rulings": [Ruling(action=Action.ABSTAIN, rule=None)],
    }
    return review.escalate(decision=decision, **plain | changes).id


@pytest.mark.parametrize("path", ["/healthz", "/tickets", "/sign-in", "/static/page.css", "/nowhere", "/openapi.json"])
def test_every_response_has_security_headers(site: Site, path: str) -> None:
    with site.client() as client:
        headers = client.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    assert "server" not in headers
    assert "strict-transport-security" not in headers


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("csrf", ["", "made up"])
def test_no_other_sites_form_changes_a_ticket(site: Site, ask: Ask, review: ReviewQueue, what: str, csrf: str) -> None:
    ticket = ask("q?").id
    ana = site.signed_in("ana")
    data = {"csrf": csrf, "verdict": "accept", "version": "1"}
    assert ana.client.post(f"/tickets/{ticket}/{what}", data=data).status_code == 403
    own = {"csrf": ana.csrf, "verdict": "accept", "version": "1"}
    headers = {"sec-fetch-site": "cross-site"}
    assert ana.client.post(f"/tickets/{ticket}/{what}", data=own, headers=headers).status_code == 403
    assert ana.client.post("/tickets/next", data={"csrf": csrf}).status_code == 403
    assert ana.client.post("/sign-out", data={"csrf": csrf}).status_code == 403
    # Another session's.
    assert site.signed_in("ben").client.post(f"/tickets/{ticket}/{what}", data=own).status_code == 403
    assert review.get(ticket).ticket.version == 1


@pytest.mark.parametrize("what", CHANGES)
def test_a_viewer_changes_no_ticket(site: Site, ask: Ask, review: ReviewQueue, what: str) -> None:
    ticket = ask("q?").id
    vera = site.signed_in("vera")
    assert vera.post(f"/tickets/{ticket}/{what}", verdict="accept", version="1").status_code == 403
    assert vera.post("/tickets/next").status_code == 403
    assert review.get(ticket).ticket.version == 1


@pytest.mark.parametrize("what", CHANGES)
def test_signed_out_browsers_change_no_ticket(site: Site, ask: Ask, review: ReviewQueue, what: str) -> None:
    ticket = ask("q?").id
    with site.client() as client:
        response = client.post(f"/tickets/{ticket}/{what}", data={"verdict": "accept", "version": "1"})
    assert (response.status_code, response.headers["location"]) == (303, "/sign-in")
    assert review.get(ticket).ticket.version == 1


def test_the_list_can_be_narrowed_down_in_every_way(site: Site, review: ReviewQueue, clock: Clock) -> None:
    ids = {name: put(review, name, request=Request.of(name), queue="q&a") for name in ("mine", "theirs", "free")}
    ids["done"] = put(review, "done", request=Request.of("done"))
    ids["late"] = put(review, "late", request=Request.of("late"), due=10)
    review.claim(ids["mine"], reviewer="ana")
    review.claim(ids["theirs"], reviewer="ben")
    review.resolve(ids["done"], Verdict.ACCEPT)
    clock.now += 20
    ana = site.signed_in("ana")

    def shown(query: str) -> set[str]:
        found = re.findall(r'class="ticket-question">([^<]*)<', ana.get(f"/tickets?{query}").text)
        return {html.unescape(question) for question in found}

    assert shown("") == {"free", "late"}
    assert shown("queue=q%26a") == {"free"}
    assert shown("mine=true") == {"mine"}
    assert shown("state=claimed") == {"mine", "theirs"}
    assert shown("state=claimed&queue=default") == set()
    assert shown("overdue=true") == {"late"}
    assert shown("state=resolved") == {"done"}
    assert shown("state=all") == set(ids)
    assert Filters(queue="True story", mine=True).url(limit=100) == "/tickets?queue=True+story&mine=true&limit=100"
    assert 'href="/tickets?state=claimed&amp;queue=q%26a"' in ana.get("/tickets?queue=q%26a").text


@pytest.mark.parametrize("query", ["state=lost", "limit=0", "limit=501", "limit=many", "mine=perhaps"])
def test_invalid_filters_are_refused(site: Site, query: str) -> None:
    response = site.signed_in("ana").get(f"/tickets?{query}")
    assert response.status_code == 400
    assert query.split("=", maxsplit=1)[0] in response.text


def test_a_long_list_is_shown_in_parts(site: Site, review: ReviewQueue) -> None:
    for number in range(3):
        put(review, f"d{number}")
    ana = site.signed_in("ana")
    page = ana.get("/tickets?limit=2").text
    assert page.count('class="ticket-question"') == 2
    assert 'href="/tickets?limit=4"' in page
    assert "Show more" not in ana.get("/tickets?limit=4").text


def test_the_next_ticket_is_the_most_urgent_that_nobody_has(site: Site, review: ReviewQueue) -> None:
    plain, urgent = put(review, "d1"), put(review, "d2", queue="urgent")
    ana, ben = site.signed_in("ana"), site.signed_in("ben")
    assert ana.post("/tickets/next").headers["location"] == f"/tickets/{urgent}"
    assert ben.post("/tickets/next", queue="urgent").headers["location"] == "/tickets?queue=urgent"
    assert ben.post("/tickets/next").headers["location"] == f"/tickets/{plain}"
    assert [review.get(one).ticket.claimed_by for one in (urgent, plain)] == ["ana", "ben"]


def test_a_verdict_is_on_the_version_that_was_seen(site: Site, ask: Ask, review: ReviewQueue) -> None:
    ticket = ask("q?").id
    review.claim(ticket, reviewer="ben")
    review.release(ticket, reviewer="ben")
    response = site.signed_in("ana").post(
        f"/tickets/{ticket}/verdict", verdict="correct", version="1", text="<right>", reason="because"
    )
    assert response.status_code == 409
    assert "The ticket has another version than the one that was looked at." in response.text
    assert re.search(r"<textarea[^>]*>&lt;right&gt;</textarea>", response.text)
    assert "because" in response.text
    assert review.get(ticket).ticket.state == "open"


def test_line_endings_are_normalised(site: Site, ask: Ask, review: ReviewQueue) -> None:
    ticket = ask("q?").id
    site.signed_in("ana").post(f"/tickets/{ticket}/verdict", verdict="correct", version="1", text="one\r\ntwo")
    assert review.get(ticket).ticket.text == "one\ntwo"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"verdict": "accept", "version": "1", "text": "but rather so"}, 400),
        ({"verdict": "correct", "version": "1", "text": " "}, 400),
        ({"verdict": "maybe", "version": "1"}, 400),
        ({"verdict": "accept", "version": "one"}, 400),
        ({"verdict": "accept"}, 400),
    ],
)
def test_an_invalid_form_is_refused(
    site: Site, ask: Ask, review: ReviewQueue, fields: dict[str, str], status: int
) -> None:
    ticket = ask("q?").id
    assert site.signed_in("ana").post(f"/tickets/{ticket}/verdict", **fields).status_code == status
    assert review.get(ticket).ticket.state == "open"


def test_a_claim_is_seen_by_all(site: Site, ask: Ask) -> None:
    ticket = ask("q?").id
    ana, ben = site.signed_in("ana"), site.signed_in("ben")
    assert ana.post(f"/tickets/{ticket}/claim").status_code == 303
    assert "<strong>ana</strong> has this ticket" in ben.get(f"/tickets/{ticket}/state?seen=1").text
    assert "It changed since you opened it" in ben.get(f"/tickets/{ticket}/state?seen=1").text
    assert "It changed since you opened it" not in ben.get(f"/tickets/{ticket}/state?seen=2").text
    assert ben.post(f"/tickets/{ticket}/claim").status_code == 409
    assert ben.post(f"/tickets/{ticket}/release").status_code == 409
    assert ana.post(f"/tickets/{ticket}/release").status_code == 303


def test_thresholds_are_those_of_the_policy_that_escalated(
    site: Site, ask: Ask, review: ReviewQueue, policy: Policy
) -> None:
    assert [(one.at, one.rule, one.do) for one in thresholds_of(policy)] == [
        (0.25, "sure", "answer"),
        (0.75, "unsure-so-ask-a-person", "escalate"),
    ]
    ana = site.signed_in("ana")
    assert (
        "the rule sure looks at 0.25; the rule unsure-so-ask-a-person looks at 0.75."
        in ana.get(f"/tickets/{ask('q?').id}").text
    )
    assert "looks at" not in ana.get(f"/tickets/{put(review, 'older', policy='another')}").text


def test_thresholds_follow_a_policy_that_is_reloaded(
    start: Start, settings: PageSettings, review: ReviewQueue, tmp_path: Path
) -> None:
    file = tmp_path / "policy.yaml"
    rules = "version: 1\nname: p\nrules: [{id: unsure, when: uncertainty > %s, do: escalate}, {id: a, do: abstain}]\n"
    file.write_text(rules % 0.31)
    guard = Guard(
        tiers=[Tier(name="small", model=FakeModel("Oslo"), scorer=FixedScorer(0.5))],
        policy=Policy.load(file),
        review=review,
    )
    guard.follow(file)
    with start(settings, guard=guard) as site:
        ana = site.signed_in("ana")
        for at in ("0.31", "0.42"):
            file.write_text(rules % at)
            until(lambda: guard.policy.fingerprint == Policy.load(file).fingerprint)
            ticket = guard.decide("q?").ticket
            assert ticket is not None
            assert f"the rule unsure looks at {at}." in ana.get(f"/tickets/{ticket.id}").text


def test_maps_stand_beside_the_typical_maps_of_their_tier(site: Site, ask: Ask, review: ReviewQueue) -> None:
    ana = site.signed_in("ana")

    def names(ticket: str) -> list[str]:
        return re.findall(r"<figcaption>([^<]*)</figcaption>", ana.get(f"/tickets/{ticket}").text)

    own = ["Over the whole answer", "Before the answer", "At the last token"]
    beside = [own[0], "Typical of right answers", "Typical of wrong answers", *own[1:]]
    assert names(ask("q?").id) == [*own, *beside]  # the server knows what is typical of the tier large only
    # A model with another number of layers, and an attempt that never came to an answer, compare with nothing.
    smaller = put(
        review, "smaller", attempts=[Attempt(tier="large", text="a", signatures={"mean": lifelike(1)[:9, :9]})]
    )
    assert names(smaller) == own[:1]
    stopped = put(review, "stopped", attempts=[Attempt(tier="large", signatures={"prompt": lifelike(1)})])
    assert names(stopped) == ["Before the answer"]


def test_a_ticket_explains_its_decision_in_a_few_sentences(site: Site, ask: Ask, review: ReviewQueue) -> None:
    ana = site.signed_in("ana")
    shown = html.unescape(ana.get(f"/tickets/{ask('q?').id}").text)
    assert "The tier 'large' answered with an uncertainty of 0.62. " in shown
    assert (
        "By rule 'unsure-so-ask-a-person' a person decides (escalate), because <code>uncertainty < 0.75</code> is "
        "true (uncertainty is 0.62)" in shown
    )
    assert "rule 'unsure-so-try-larger', as it would retry, but there is no larger tier." in shown
    plain = html.unescape(ana.get(f"/tickets/{put(review, 'd')}").text)
    assert "No rule held, so nothing is answered (abstain). It waits in the queue 'default' for a person." in plain


def test_a_long_prompt_is_cut_on_the_board_alone(site: Site, ask: Ask) -> None:
    ticket = ask("Why? " * 20_000).id
    ana = site.signed_in("ana")
    assert "Why? Why?" in ana.get("/tickets").text
    assert len(ana.get("/tickets").text) < 20_000
    assert len(ana.get(f"/tickets/{ticket}").text) > 100_000


def test_a_prompt_with_half_a_character_hides_no_ticket(site: Site, review: ReviewQueue) -> None:
    # A guard refuses such texts; the queue has other callers too.
    half = Request(messages=(Message(role="user", content="What is half of \ud83d?"),), labels={"place": "\udfff"})
    labelled = put(review, "d", request=half)
    ana = site.signed_in("ana")
    for path in ("/tickets", f"/tickets/{labelled}"):
        response = ana.get(path)
        assert response.status_code == 200
        assert r"What is half of \ud83d?" in response.text


def test_an_attempt_that_was_stopped_at_the_prompt_says_so(
    site: Site, review: ReviewQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_dict = Attempt.to_dict
    monkeypatch.setattr(Attempt, "to_dict", lambda self: to_dict(self) | {"stage": "prompt"})
    ticket = put(review, "d", attempts=[Attempt(tier="small", uncertainty=0.9)])
    page = site.signed_in("ana").get(f"/tickets/{ticket}").text
    assert "Stopped after the question was read, before a token was generated" in page
    assert "No model gave an answer that could be accepted." in page
    assert 'value="accept"' not in page


def test_a_redacted_ticket_says_so(site: Site, ask: Ask, review: ReviewQueue, clock: Clock) -> None:
    ticket = ask("What nobody should know").id
    review.resolve(ticket, Verdict.CORRECT, text="a secret")
    clock.now += 100
    review.redact(older_than=50)
    ana = site.signed_in("ana")
    page = ana.get(f"/tickets/{ticket}").text
    assert "Its texts were taken out on" in page
    assert "a secret" not in page
    shown = ana.get("/tickets?state=resolved").text
    assert '<span class="ticket-question">[redacted]</span>' in shown
    assert "nobody should know" not in page + shown


def test_the_first_characters_of_an_id_lead_to_the_ticket(site: Site, ask: Ask) -> None:
    ticket = ask("q?").id
    response = site.signed_in("ana").get(f"/tickets/{ticket[:8]}")
    assert (response.status_code, response.headers["location"]) == (303, f"/tickets/{ticket}")


def test_clients_that_are_no_browsers_get_problem_details(site: Site) -> None:
    ana = site.signed_in("ana")
    told = ana.client.get("/tickets/ffffffff", headers={"accept": "application/json"})
    assert (told.status_code, told.headers["content-type"]) == (404, "application/problem+json")
    assert told.json()["type"] == "urn:ilis-guard:error:TicketNotFoundError"
    assert "ffffffff" not in told.json()["detail"]
    assert ana.get("/tickets/ffffffff").headers["content-type"].startswith("text/html")


def test_a_defect_has_an_id_and_its_message_is_not_logged(
    site: Site,
    review: ReviewQueue,
    monkeypatch: pytest.MonkeyPatch,
    logged: list[Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise RuntimeError("What nobody should know")

    ana = site.signed_in("ana")
    monkeypatch.setattr(review, "counts", fail)
    told = ana.get("/tickets")
    assert told.status_code == 500
    assert told.json()["request_id"] == told.headers["x-request-id"]
    assert told.headers["content-security-policy"]
    (event,) = [one for one in logged if one["event"] == "ilis_guard.request.failed"]
    assert event["request"] == told.headers["x-request-id"]
    assert event["error"] == "RuntimeError"
    assert event["where"].endswith("in fail")
    assert "What nobody should know" not in told.text + str(logged) + "".join(capfd.readouterr())


def test_background_tasks_stop_with_the_application(settings: PageSettings, start: Start) -> None:
    heard: list[str] = []

    async def work(stop: asyncio.Event) -> None:
        heard.append("started")
        await stop.wait()
        heard.append("stopped")

    with start(settings, background=[work]) as site, site.client() as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert heard == ["started"]
    assert heard == ["started", "stopped"]


def test_the_uncertainty_of_a_cut_answer_is_not_explained(site: Site, review: ReviewQueue) -> None:
    half = Attempt(tier="small", text="24", uncertainty=0.97, typicality=0.2, tokens=1, stopped_at=1)
    whole, cut = put(review, "a"), put(review, "b", attempts=[half])
    ana = site.signed_in("ana").client
    shown = ana.get(f"/tickets/{cut}").text
    assert "Cut after 1 token: no rule would have answered any more." in shown
    assert "in 100 are wrong" not in shown
    assert 'value="accept"' not in shown
    assert "in 100 are wrong" in ana.get(f"/tickets/{whole}").text
    assert 'value="accept"' in ana.get(f"/tickets/{whole}").text


def test_a_ticket_says_why_an_uncertainty_is_not_calibrated(site: Site, review: ReviewQueue) -> None:
    helpful = Attempt(tier="small", text="24", uncertainty=0.4, rank=0.25, departures=("system", "history"), tokens=1)
    shown = site.signed_in("ana").client.get(f"/tickets/{put(review, 'a', attempts=[helpful])}").text
    assert "isn&#39;t calibrated for this request: a system message, earlier turns; it only ranks answers." in shown
    assert "25 in 100" in shown
    assert "in 100 are wrong" not in shown


def test_a_ticket_of_an_unlabelled_answer_shows_its_rank_and_no_probability(site: Site, review: ReviewQueue) -> None:
    ranked = Attempt(tier="chat", text="24", rank=0.75, departures=("labels",), tokens=1)
    shown = site.signed_in("ana").client.get(f"/tickets/{put(review, 'a', attempts=[ranked])}").text
    assert "No labelled row says how probable it is that the answer is wrong" in shown
    assert "75 in 100" in shown
    assert "in 100 are wrong" not in shown
