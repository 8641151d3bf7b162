"""Signing in and out."""

import hmac
import math
import re
import secrets
from typing import Annotated, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from ilis_guard import events
from ilis_guard_server.access import Acting, check_same_site, cookie_name, is_secure, set_cookie, visit_of
from ilis_guard_server.house import House, TheHouse
from ilis_guard_server.pages import page

HOME: Final = "/tickets"
_INSIDE: Final = re.compile(r"/tickets(?:/[0-9a-f]+)?(?:\?[\w=&%.+~-]*)?")
"""Where somebody may be sent back to."""
_FORM_SECONDS: Final = 3600.0

router = APIRouter(include_in_schema=False)


@router.get("/sign-in", name="sign_in")
def sign_in_page(request: Request, house: TheHouse, next: str = HOME) -> Response:  # noqa: A002 - the usual word in URLs
    """Ask for a token, unless somebody is signed in or the proxy vouches for them."""
    if visit_of(request, house) is not None:
        return RedirectResponse(_inside(next), status_code=303)
    person = house.people.vouched_for(request)
    if person is not None:
        return _signed_in(house, person.name, "", next)
    return _form(request, house, next)


@router.post("/sign-in")
def sign_in(
    request: Request,
    house: TheHouse,
    token: Annotated[str, Form()] = "",
    form: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = HOME,  # noqa: A002 - the usual word in URLs
) -> Response:
    """Begin a session for whose token this is."""
    check_same_site(request)
    address = request.client.host if request.client is not None else ""
    wait = house.sign_in_limit.wait(address)
    if wait > 0:
        events.log().warning(events.SIGN_IN_FAILED, address=address, reason="too many")
        said = f"Too many wrong tokens came from your address. Try again in {math.ceil(wait / 60)} min."
        response = _form(request, house, next, said=said, status=429)
        response.headers["retry-after"] = str(math.ceil(wait))
        return response
    expected = request.cookies.get(_form_cookie(house), "")
    if not expected or not hmac.compare_digest(form.encode(), expected.encode()):
        return _form(request, house, next, said="This form was too old. Please try again.", status=403)
    found = house.people.with_token(token)
    if found is None:
        house.sign_in_limit.failed(address)
        events.log().warning(events.SIGN_IN_FAILED, address=address, reason="wrong token")
        return _form(request, house, next, said="Nobody here has this token.", status=401)
    person, given = found
    return _signed_in(house, person.name, given, next)


@router.post("/sign-out")
def sign_out(request: Request, house: TheHouse, visit: Acting) -> Response:
    """End the session."""
    house.sessions.end(request.cookies[cookie_name(house)])
    events.log().info(events.SIGN_OUT_SUCCEEDED, name=visit.person.name)
    response = RedirectResponse("/sign-in", status_code=303)
    response.delete_cookie(cookie_name(house), path="/", secure=is_secure(house), httponly=True, samesite="strict")
    return response


def _signed_in(house: House, name: str, given: str, next_page: str) -> Response:
    events.log().info(events.SIGN_IN_SUCCEEDED, name=name, method="token" if given else "proxy")
    response = RedirectResponse(_inside(next_page), status_code=303)
    set_cookie(response, house, cookie_name(house), house.sessions.open(name, given))
    return response


def _form(request: Request, house: House, next_page: str, *, said: str = "", status: int = 200) -> Response:
    """The form. A cookie holds what it must send along: no other site's form can sign anybody in."""
    form = request.cookies.get(_form_cookie(house)) or secrets.token_urlsafe(32)
    response = page(request, "sign_in.html", status=status, form=form, next=_inside(next_page), said=said)
    set_cookie(response, house, _form_cookie(house), form, _FORM_SECONDS)
    return response


def _form_cookie(house: House) -> str:
    return f"{cookie_name(house)}_form"


def _inside(next_page: str) -> str:
    """A page of ours, whatever was asked for."""
    return next_page if _INSIDE.fullmatch(next_page) else HOME
