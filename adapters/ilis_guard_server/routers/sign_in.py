"""Signing in to the reviewers' page, and signing out."""

import hmac
import math
import re
import secrets
from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from ilis_guard import events
from ilis_guard_server.dependencies import CsrfUserDep, PageDep, PageState, find_user, require_same_site
from ilis_guard_server.pages.templating import page

_SIGN_IN: Final = "/sign-in"
_HOME: Final = "/tickets"
_OWN_PAGE: Final = re.compile(r"/tickets(?:/[0-9a-f]+)?(?:\?[\w=&%.+~-]*)?")
"""Where browsers may be sent back to."""
_FORM_SECONDS: Final = 3600.0

router = APIRouter(include_in_schema=False)


@router.get("/sign-in")
def show_sign_in(request: Request, state: PageDep, next: str = _HOME) -> Response:  # noqa: A002 - usual in URLs
    """Show the form, unless somebody is signed in or the proxy names them."""
    if find_user(request, state) is not None:
        return RedirectResponse(_own_page(next), status_code=303)
    user = state.users.find_by_proxy(request)
    if user is not None:
        return _open_session(state, user.name, "", next)
    return _form(request, state, next)


@router.post("/sign-in")
def sign_in(
    request: Request,
    state: PageDep,
    token: Annotated[str, Form()] = "",
    form: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = _HOME,  # noqa: A002 - usual in URLs
) -> Response:
    """Open a session for the user whose token this is."""
    require_same_site(request)
    address = request.client.host if request.client is not None else ""
    wait = state.sign_in_limit.seconds_to_wait(address)
    if wait > 0:
        events.log().warning(events.SIGN_IN_FAILED, address=address, reason="too many")
        alert = f"Too many wrong tokens came from your address. Try again in {math.ceil(wait / 60)} min."
        response = _form(request, state, next, alert=alert, status=429)
        response.headers["retry-after"] = str(math.ceil(wait))
        return response
    expected = request.cookies.get(_form_cookie(state), "")
    if not expected or not hmac.compare_digest(form.encode(), expected.encode()):
        return _form(request, state, next, alert="This form was too old. Please try again.", status=403)
    found = state.users.find_by_token(token)
    if found is None:
        state.sign_in_limit.add_failure(address)
        events.log().warning(events.SIGN_IN_FAILED, address=address, reason="wrong token")
        return _form(request, state, next, alert="Nobody here has this token.", status=401)
    user, token_hash = found
    return _open_session(state, user.name, token_hash, next)


@router.post("/sign-out")
def sign_out(request: Request, state: PageDep, user: CsrfUserDep) -> Response:
    """End the session."""
    state.sessions.end(request.cookies[state.cookie])
    events.log().info(events.SIGN_OUT_SUCCEEDED, name=user.name)
    response = RedirectResponse("/sign-in", status_code=303)
    response.delete_cookie(state.cookie, path="/", secure=state.is_secure, httponly=True, samesite="strict")
    return response


def _open_session(state: PageState, name: str, token_hash: str, next_page: str) -> Response:
    events.log().info(events.SIGN_IN_SUCCEEDED, name=name, how="token" if token_hash else "proxy")
    response = RedirectResponse(_own_page(next_page), status_code=303)
    state.set_cookie(response, state.cookie, state.sessions.open(name, token_hash))
    return response


def _form(request: Request, state: PageState, next_page: str, *, alert: str = "", status: int = 200) -> Response:
    """The form. Its hidden field repeats a cookie, so that no other site's form can sign anybody in."""
    form = request.cookies.get(_form_cookie(state)) or secrets.token_urlsafe(32)
    response = page(request, "sign_in.html", status=status, form=form, next=_own_page(next_page), alert=alert)
    state.set_cookie(response, _form_cookie(state), form, _FORM_SECONDS)
    return response


def _form_cookie(state: PageState) -> str:
    return f"{state.cookie}_form"


def _own_page(next_page: str) -> str:
    """A page of ours, whatever the address asks for."""
    return next_page if _OWN_PAGE.fullmatch(next_page) else _HOME


async def handle_sign_in_required(request: Request, error: Exception) -> Response:
    """Send the browser to the sign-in page, and back afterwards."""
    del error
    # Not from `request.url`, nor by `request.url_for`: both begin with the host that the request names.
    query = request.scope["query_string"].decode("latin-1")
    here = request.scope["path"] + (f"?{query}" if query else "")
    if "hx-request" in request.headers:
        # A part of a page was requested: the whole page must go.
        return Response(status_code=401, headers={"hx-redirect": _SIGN_IN})
    if request.method != "GET":
        return RedirectResponse(_SIGN_IN, status_code=303)
    if request.headers.get("sec-fetch-site") == "cross-site":
        # A link on another site, a chat's for instance, comes without our strict cookie: from a page of our own
        # the same request comes with it.
        return page(request, "redirect.html", here=here)
    return RedirectResponse(f"{_SIGN_IN}?{urlencode({'next': here})}", status_code=303)
