"""One ticket: what was asked, what was answered, how sure that was, and the verdict."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from ilis_guard.errors import ReviewError
from ilis_guard.policy.explain import attempt_reasons
from ilis_guard.types import Verdict
from ilis_guard.types.decisions import read_attempt
from ilis_guard_server.access import Reviewing, Visit, Visiting
from ilis_guard_server.house import House, TheHouse
from ilis_guard_server.pages import page
from ilis_guard_server.problems import detail_of, log, status_of
from ilis_guard_server.showing import attempts_of, thresholds_for

router = APIRouter(include_in_schema=False, prefix="/tickets/{ticket}")


@router.get("")
def show_ticket(request: Request, house: TheHouse, visit: Visiting, ticket: str) -> Response:
    """The page, at the address with the whole id."""
    whole = house.review.get(ticket).ticket.id
    if whole != ticket:
        return RedirectResponse(f"/tickets/{whole}", status_code=303)
    return _page(request, house, visit, ticket)


@router.get("/standing")
def show_standing(request: Request, house: TheHouse, visit: Visiting, ticket: str, seen: int) -> Response:
    """The part of the page that others change: who has it in hand, and whether it has ended."""
    record = house.review.get(ticket)
    return page(request, "standing.html", visit=visit, record=record, now=house.clock(), seen=seen)


@router.post("/claim")
def claim(request: Request, house: TheHouse, visit: Reviewing, ticket: str) -> Response:
    """Take it in hand, or keep it for longer."""
    try:
        house.review.claim(ticket, reviewer=visit.person.name)
    except ReviewError as error:
        return _refused(request, house, visit, ticket, error)
    return RedirectResponse(f"/tickets/{ticket}", status_code=303)


@router.post("/release")
def release(request: Request, house: TheHouse, visit: Reviewing, ticket: str) -> Response:
    """Give it back."""
    try:
        house.review.release(ticket, reviewer=visit.person.name)
    except ReviewError as error:
        return _refused(request, house, visit, ticket, error)
    return RedirectResponse(f"/tickets/{ticket}", status_code=303)


@router.post("/verdict")
def give_verdict(
    request: Request,
    house: TheHouse,
    visit: Reviewing,
    ticket: str,
    verdict: Annotated[Verdict, Form()],
    version: Annotated[int, Form()],
    text: Annotated[str, Form()] = "",
    reason: Annotated[str, Form()] = "",
) -> Response:
    """End it, on the version that the reviewer saw."""
    # Browsers end a form's lines with carriage returns.
    text, reason = text.replace("\r\n", "\n"), reason.replace("\r\n", "\n").strip()
    try:
        house.review.resolve(ticket, verdict, text=text, reason=reason, reviewer=visit.person.name, version=version)
    except ReviewError as error:
        return _refused(request, house, visit, ticket, error, text=text, reason=reason)
    return RedirectResponse(f"/tickets/{ticket}", status_code=303)


def _refused(
    request: Request, house: House, visit: Visit, ticket: str, error: ReviewError, *, text: str = "", reason: str = ""
) -> Response:
    """The page as the ticket stands now, with what went wrong and what the reviewer had written."""
    status = status_of(error)
    if status not in (400, 409):
        raise error
    log(request, status, error)
    return _page(request, house, visit, ticket, status=status, said=detail_of(error), text=text, reason=reason)


def _page(
    request: Request,
    house: House,
    visit: Visit,
    ticket: str,
    *,
    status: int = 200,
    said: str = "",
    text: str = "",
    reason: str = "",
) -> Response:
    record = house.review.get(ticket)
    return page(
        request,
        "ticket.html",
        status=status,
        visit=visit,
        record=record,
        reasons=attempt_reasons(tuple(map(read_attempt, record.attempts)), record.rulings),
        attempts=attempts_of(record, house.typical),
        thresholds=thresholds_for(record, house.in_force()),
        now=house.clock(),
        seen=record.ticket.version,
        said=said,
        text=text,
        reason=reason,
    )
