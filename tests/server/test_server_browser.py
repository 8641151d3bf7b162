"""The page in a real browser: by mouse, by key, at once in two windows, on a phone, in the dark."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from ilis_guard.config.review import PageSettings
from ilis_guard.errors import TransientModelError
from ilis_guard.review import ReviewQueue
from ilis_guard.types import Action, Attempt, ErrorInfo, PartOutcome, Request, RuleOutcome, Ruling, Verdict
from tests.server.conftest import Ask
from tests.server.servers import on_socket
from tests.server.website import TOKENS, Clock, Site
from tests.skips import NO_CHROMIUM, skip

ROOT: Final = Path(__file__).parents[2]
AXE: Final = (Path(__file__).parent / "axe.min.js").read_text()
SCREENSHOTS: Final = ROOT / "build" / "screenshots"
LOOKS: Final[dict[str, dict[str, Any]]] = {
    "desktop-light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "desktop-dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone-light": {"viewport": {"width": 375, "height": 812}, "color_scheme": "light", "device_scale_factor": 2},
    "phone-dark": {"viewport": {"width": 375, "height": 812}, "color_scheme": "dark", "device_scale_factor": 2},
}
HOSTILE: Final = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
    "{{ 7 * 7 }} </div></section> <a href=\"javascript:document.title='owned'\" hx-get='/'>x</a>"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        skip(NO_CHROMIUM)
    with sync_playwright() as playwright:
        expect.set_options(timeout=20_000)  # the page asks what is new every 5 seconds
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def site(build: Callable[..., FastAPI], settings: PageSettings) -> Iterator[Site]:
    """A server on a socket, where browsers reach it."""
    with on_socket(build(settings)) as (url, connect):
        yield Site(url, connect)


@pytest.fixture
def complaints() -> list[str]:
    """What browsers say against our pages: scripts that fail, and all that the Content-Security-Policy kept out."""
    return []


Window = Callable[..., BrowserContext]


@pytest.fixture
def window(browser: Browser, site: Site, complaints: list[str]) -> Iterator[Window]:
    """Opens a browser with cookies of its own; at the end nothing may have been said against our pages."""
    contexts: list[BrowserContext] = []

    def open_one(**look: Any) -> BrowserContext:
        context = browser.new_context(base_url=site.url, **look)
        context.set_default_timeout(10_000)
        context.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        contexts.append(context)
        return context

    yield open_one
    for context in contexts:
        context.close()
    # Chromium also reports pages that come with a status from 400 up: those are ours, on purpose.
    assert [said for said in complaints if not said.startswith("Failed to load resource")] == []


@pytest.fixture
def enter(window: Window) -> Callable[..., Page]:
    """Opens a browser and signs somebody in."""

    def enter_one(name: str, **look: Any) -> Page:
        page = window(**look).new_page()
        page.goto("/")
        page.get_by_label("Your token").fill(TOKENS[name])
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator(".who-name")).to_have_text(name)
        return page

    return enter_one


def test_signing_in_and_out(window: Window) -> None:
    page = window().new_page()
    page.goto("/tickets?state=claimed")
    expect(page).to_have_title("Sign in · ilis_guard")
    page.get_by_label("Your token").fill("guessed")
    _press(page, "Enter")
    expect(page.get_by_role("alert")).to_have_text("Nobody here has this token.")
    page.get_by_label("Your token").fill(TOKENS["ana"])
    _press(page, "Enter")
    expect(page).to_have_url(re.compile(r"/tickets\?state=claimed$"))
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_title("Sign in · ilis_guard")
    page.goto("/tickets")
    expect(page).to_have_title("Sign in · ilis_guard")


def test_a_link_on_another_site_finds_a_signed_in_reviewer_signed_in(
    enter: Callable[..., Page], ask: Ask, site: Site
) -> None:
    ticket = ask("What is the boiling point of gallium?")
    page = enter("ana")
    elsewhere = site.url.replace("127.0.0.1", "localhost")  # another site to a browser
    page.goto(f"{elsewhere}/sign-in")
    page.evaluate(f"location.href = '{site.url}/tickets/{ticket.id}'")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Ticket {ticket.id[:8]}")


def test_the_queue_shows_the_most_urgent_first_and_filters(
    enter: Callable[..., Page], ask: Ask, review: ReviewQueue, clock: Clock
) -> None:
    for number in range(3):
        ask(f"Question {number}?")
        clock.now += 1
    urgent = review.escalate(
        decision="u",
        request=Request.of("Is the valve open?"),
        attempts=[],
        queue="urgent",
        policy="p",
        rule=None,
    )
    page = enter("ana")
    questions = page.locator(".ticket-question")
    expect(questions).to_have_text(["Is the valve open?", "Question 0?", "Question 1?", "Question 2?"])
    page.get_by_role("link", name="urgent 1").click()
    expect(questions).to_have_text(["Is the valve open?"])
    expect(page.get_by_role("navigation", name="Which tickets")).to_contain_text("Overdue 0")
    clock.now += 601
    page.get_by_role("link", name="Overdue").click()
    expect(questions).to_have_text(["Is the valve open?"])
    expect(page.locator(".chip.late")).to_have_text("overdue")
    page.get_by_role("link", name="Mine").click()
    expect(page.locator(".empty")).to_have_text("No such tickets.")
    review.claim(urgent.id, reviewer="ana")
    expect(questions).to_have_text(["Is the valve open?"])  # by itself: the page asks what is new
    expect(page.get_by_role("link", name="Mine")).to_have_attribute("aria-current", "page")


def test_counts_are_live_and_focus_stays(enter: Callable[..., Page], ask: Ask, clock: Clock) -> None:
    first = ask("First?")
    clock.now += 1
    page = enter("vera")
    expect(page.locator("#open")).to_have_text("Open 1")
    page.locator(f"#ticket-{first.id}").focus()
    ask("Second?")
    expect(page.locator("#open")).to_have_text("Open 2")
    expect(page.locator(".ticket-question")).to_have_text(["First?", "Second?"])
    expect(page.get_by_role("status")).to_have_text(re.compile("^2 open, 0 mine"))
    expect(page.locator(f"#ticket-{first.id}")).to_be_focused()


def test_of_two_reviewers_only_one_gets_the_ticket(enter: Callable[..., Page], ask: Ask, review: ReviewQueue) -> None:
    ticket = ask("What is the boiling point of gallium?")
    ana, ben = enter("ana"), enter("ben")
    for page in (ana, ben):
        page.goto(f"/tickets/{ticket.id}")
    ana.get_by_role("button", name="Claim").click()
    expect(ana.locator("#ticket-state-text")).to_contain_text("You have this ticket until")
    ben.get_by_role("button", name="Claim").click()
    expect(ben.get_by_role("alert")).to_contain_text("Somebody else has claimed the ticket")
    expect(ben.locator("#ticket-state-text")).to_contain_text("ana has this ticket until")
    # What ben wrote meanwhile isn't lost when his verdict is refused, too.
    ben.get_by_label("The right answer").fill("2403 °C,\nmore or less")
    ben.get_by_role("button", name="Correct").click()
    expect(ben.get_by_role("alert")).to_contain_text("Somebody else has claimed the ticket")
    expect(ben.get_by_label("The right answer")).to_have_value("2403 °C,\nmore or less")
    ana.get_by_role("button", name="Give it back").click()
    expect(ana.locator("#ticket-state-text")).to_contain_text("Nobody has this ticket.")
    expect(ben.locator("#ticket-state-text")).to_contain_text("It changed since you opened it")
    assert [entry.type for entry in review.get(ticket.id).history] == ["created", "claimed", "released"]


def test_a_verdict_by_mouse(enter: Callable[..., Page], ask: Ask, review: ReviewQueue) -> None:
    ticket = ask("What is the boiling point of gallium?")
    page = enter("ana")
    page.get_by_role("link", name="What is the boiling point").click()
    page.get_by_label("Reason").fill("as in the handbook")
    page.get_by_role("button", name="Accept").click()
    expect(page.locator("#ticket-state-text")).to_contain_text("ana gave the verdict accept")
    ended = review.get(ticket.id)
    assert (ended.ticket.verdict, ended.ticket.reason, ended.reviewer) == (
        Verdict.ACCEPT,
        "as in the handbook",
        "ana",
    )


@pytest.mark.parametrize(
    ("keys", "verdict", "text"),
    [
        (["a", "Enter"], Verdict.ACCEPT, ""),
        (["c", "2403 °C", "Control+Enter"], Verdict.CORRECT, "2403 °C"),
        (["r", "Enter"], Verdict.REJECT, ""),
    ],
)
def test_everything_by_keys(
    enter: Callable[..., Page], ask: Ask, review: ReviewQueue, keys: list[str], verdict: Verdict, text: str
) -> None:
    ticket = ask("What is the boiling point of gallium?")
    page = enter("ana")
    _press(page, "n")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Ticket {ticket.id[:8]}")
    expect(page.locator("#ticket-state-text")).to_contain_text("You have this ticket")
    _press(page, "m")
    expect(page.locator("#ticket-state-text")).to_contain_text("Nobody has this ticket")
    _press(page, "m")
    expect(page.locator("#ticket-state-text")).to_contain_text("You have this ticket")
    for key in keys:
        if key == text:
            page.keyboard.insert_text(key)
        else:
            _press(page, key)
    expect(page.locator("#ticket-state-text")).to_contain_text(f"ana gave the verdict {verdict.value}")
    assert (review.get(ticket.id).ticket.verdict, review.get(ticket.id).ticket.text) == (verdict, text)
    _press(page, "q")
    expect(page).to_have_url(re.compile("/tickets$"))


def test_letters_in_a_field_are_letters_and_keys_can_be_switched_off(
    enter: Callable[..., Page], ask: Ask, review: ReviewQueue, clock: Clock
) -> None:
    ticket = ask("First?")
    clock.now += 1
    ask("Second?")
    page = enter("ana")
    _press(page, "j")
    _press(page, "j")
    _press(page, "k")
    expect(page.locator(f"#ticket-{ticket.id}")).to_be_focused()
    _press(page, "Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Ticket {ticket.id[:8]}")
    _press(page, "c")
    page.keyboard.type("namrcq?")
    expect(page.get_by_label("The right answer")).to_have_value("namrcq?")
    _press(page, "Escape")
    _press(page, "?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.get_by_label("Single letters are keys").uncheck()
    _press(page, "Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    _press(page, "m")
    _press(page, "q")
    page.reload()
    _press(page, "m")
    expect(page).to_have_url(re.compile(f"/tickets/{ticket.id}$"))
    page.get_by_role("button", name="Keys").click()
    expect(page.get_by_label("Single letters are keys")).not_to_be_checked()
    assert review.get(ticket.id).ticket.state == "open"


def test_a_viewer_looks_on(enter: Callable[..., Page], ask: Ask) -> None:
    ticket = ask("What is the boiling point of gallium?")
    page = enter("vera")
    page.goto(f"/tickets/{ticket.id}")
    expect(page.get_by_role("heading", name="What the models said")).to_be_visible()
    assert page.get_by_role("button").all_inner_texts() == ["Keys\n?", "Sign out"]


def test_texts_of_people_and_models_stay_text(enter: Callable[..., Page], ask: Ask, review: ReviewQueue) -> None:
    ticket = ask(HOSTILE, HOSTILE, topic=HOSTILE)
    page = enter("ana")
    expect(page.locator(".ticket-question")).to_have_text(HOSTILE)
    page.goto(f"/tickets/{ticket.id}")
    expect(page.locator(".turn .text")).to_have_text(HOSTILE)
    expect(page.locator(".answer").last).to_have_text(HOSTILE)
    expect(page).to_have_title(f"Ticket {ticket.id[:8]} · ilis_guard")
    odd = review.escalate(
        decision="odd",
        request=Request.of("q"),
        attempts=[],
        queue=HOSTILE,
        policy="p",
        rule=HOSTILE,
        rulings=[Ruling(action=Action.ESCALATE, rule=HOSTILE, outcomes=(_decided(HOSTILE),))],
    )
    page.goto(f"/tickets/{odd.id}")
    expect(page.locator(".why code").first).to_have_text(HOSTILE)
    expect(page.locator(".crumbs a").last).to_have_text(HOSTILE)
    assert page.locator("main script, main img, main [hx-get='/'], main [onerror]").count() == 0


def test_an_inline_script_would_not_run_and_would_be_noticed(enter: Callable[..., Page], complaints: list[str]) -> None:
    page = enter("ana")
    page.evaluate(
        "() => document.body.append("
        "Object.assign(document.createElement('script'), {textContent: 'document.title = 1'}))"
    )
    expect(page).to_have_title("Queue · ilis_guard")
    assert len(complaints) == 1
    assert "Content Security Policy" in complaints.pop()


def test_without_scripts_everything_works_all_the_same(
    enter: Callable[..., Page], ask: Ask, review: ReviewQueue
) -> None:
    ticket = ask("What is the boiling point of gallium?")
    page = enter("ana", java_script_enabled=False)
    page.get_by_role("button", name="Next ticket").click()
    page.get_by_label("The right answer").fill("2403 °C")
    page.get_by_role("button", name="Correct").click()
    assert (review.get(ticket.id).ticket.verdict, review.get(ticket.id).ticket.text) == (Verdict.CORRECT, "2403 °C")


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_in_every_look_is_accessible(
    enter: Callable[..., Page], window: Window, ask: Ask, review: ReviewQueue, clock: Clock, look: str
) -> None:
    ticket, resolved, late = _everything(ask, review, clock)
    signing_in = window(**LOOKS[look]).new_page()
    signing_in.goto("/sign-in")
    _check(signing_in, f"sign-in-{look}")
    page = enter("ana", **LOOKS[look])
    pages = {
        "queue": "/tickets",
        "queue-empty": "/tickets?state=expired",
        "ticket": f"/tickets/{ticket}",
        "ticket-resolved": f"/tickets/{resolved}",
        "ticket-prompt": f"/tickets/{late}",
        "not-found": "/tickets/ffffffff",
    }
    for name, path in pages.items():
        page.goto(path)
        _check(page, f"{name}-{look}")
    page.goto("/tickets")
    page.get_by_role("button", name="Keys").click()
    _check(page, f"keys-{look}")


def _decided(text: str) -> RuleOutcome:
    """A rule whose name and condition are this text."""
    part = PartOutcome(condition=text, value=True, facts={})
    return RuleOutcome(rule=text, stage="answer", outcome="decided", parts=(part,))


def _press(page: Page, key: str) -> None:
    """Press a key once the page's script is there to hear it."""
    page.wait_for_load_state("domcontentloaded")
    page.keyboard.press(key)


def _check(page: Page, name: str) -> None:
    """Keep a picture, and see that nobody is shut out: by axe, and by a page that is wider than the screen."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    page.evaluate(AXE)
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    assert found["passes"], "axe looked at nothing"
    assert [
        (one["id"], [node["target"] for node in one["nodes"]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ] == []
    assert page.evaluate("() => document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def _everything(ask: Ask, review: ReviewQueue, clock: Clock) -> tuple[str, str, str]:
    """Tickets in all states: one that waits, one that ended, and one that is late and was stopped at the prompt."""
    late = review.escalate(
        decision="late",
        request=Request.of("Is the second valve of the east tank open, and since when?"),
        attempts=[Attempt(tier="small", error=ErrorInfo.of(TransientModelError("the model didn't answer in 30 s")))],
        queue="urgent",
        policy="p",
        rule=None,
    )
    clock.now += 700
    ticket = ask("What is the boiling point of gallium, and who measured it first?", topic="chemistry", tier=2)
    other = ask("Which of the two treaties was signed earlier, and in which town?", "Münster, in October 1648")
    resolved = ask("How many bones has an adult's hand?", "27")
    review.claim(other.id, reviewer="ben")
    review.claim(ticket.id, reviewer="ana")
    clock.now += 120
    review.resolve(resolved.id, Verdict.CORRECT, text="27, wrist included", reason="say what counts", reviewer="ben")
    return ticket.id, resolved.id, late.id
