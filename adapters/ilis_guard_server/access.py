"""Who asks: the person behind a request, and whether they may do what it says."""

import hmac
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Form, HTTPException, Request
from starlette.responses import RedirectResponse, Response

from ilis_guard_server.house import House, TheHouse
from ilis_guard_server.pages import page
from ilis_guard_server.people import Person
from ilis_guard_server.sessions import SESSION_SECONDS

SIGN_IN: Final = "/sign-in"


class SignInNeededError(Exception):
    """Nobody is signed in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A request by somebody who is signed in."""

    person: Person
    csrf: str
    by_token: bool
    """Whether they signed in themselves, and not through the proxy."""


def visit_of(request: Request, house: House) -> Visit | None:
    """Who is signed in; None where nobody is, or what they signed in with no longer holds."""
    session = house.sessions.get(request.cookies.get(cookie_name(house), ""))
    if session is None:
        return None
    if session.token_hash:
        person = house.people.still_with_token(session.name, session.token_hash)
    else:
        person = house.people.vouched_for(request)
    if person is None or person.name != session.name:
        return None
    return Visit(person=person, csrf=session.csrf, by_token=bool(session.token_hash))


def visiting(request: Request, house: TheHouse) -> Visit:
    """The dependency of what only signed-in people see."""
    visit = visit_of(request, house)
    if visit is None:
        raise SignInNeededError
    return visit


Visiting = Annotated[Visit, Depends(visiting)]


def acting(request: Request, visit: Visiting, csrf: Annotated[str, Form()] = "") -> Visit:
    """The dependency of what a form does: it must be a form of ours."""
    check_same_site(request)
    if not hmac.compare_digest(csrf.encode(), visit.csrf.encode()):
        raise HTTPException(403)
    return visit


def reviewing(visit: Annotated[Visit, Depends(acting)]) -> Visit:
    """The dependency of what only reviewers do."""
    if not visit.person.is_reviewer:
        raise HTTPException(403)
    return visit


Acting = Annotated[Visit, Depends(acting)]
Reviewing = Annotated[Visit, Depends(reviewing)]


def check_same_site(request: Request) -> None:
    """Refuse what a browser says another site sent."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403)


def is_secure(house: House) -> bool:
    """Whether reviewers come by https."""
    return house.page.url.startswith("https:")


def cookie_name(house: House) -> str:
    """Browsers keep a `__Host-` cookie from being set by anybody but this very host, by https."""
    return "__Host-ilis_guard" if is_secure(house) else "ilis_guard"


def set_cookie(response: Response, house: House, name: str, value: str, seconds: float = SESSION_SECONDS) -> None:
    """Set a cookie that scripts can't read and other sites can't send."""
    response.set_cookie(
        name, value, max_age=int(seconds), path="/", secure=is_secure(house), httponly=True, samesite="strict"
    )


async def on_sign_in_needed(request: Request, error: Exception) -> Response:
    """Send somebody to sign in, and back afterwards."""
    assert isinstance(error, SignInNeededError)
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if "hx-request" in request.headers:
        # A part of a page asked: the whole page must go.
        return Response(status_code=401, headers={"hx-redirect": SIGN_IN})
    if request.method != "GET":
        return RedirectResponse(SIGN_IN, status_code=303)
    if request.headers.get("sec-fetch-site") == "cross-site":
        # A link on another site, a chat's for instance, comes without our strict cookie: from a page of our own
        # the same request comes with it.
        return page(request, "hop.html", here=here)
    url = request.url_for("sign_in").include_query_params(next=here)
    return RedirectResponse(f"{url.path}?{url.query}", status_code=303)
