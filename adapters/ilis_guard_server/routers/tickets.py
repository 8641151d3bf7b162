"""The reviewers' page: the board of tickets, and one ticket with its verdict."""

from collections.abc import Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from ilis_guard.errors import ReviewError
from ilis_guard.types import Verdict
from ilis_guard_server.dependencies import CurrentUser, PageDep, PageState, ReviewerDep, UserDep
from ilis_guard_server.pages.templating import page
from ilis_guard_server.pages.view_models import Board, Filters, ticket_view
from ilis_guard_server.problem_details import log_failure, status_and_detail

router = APIRouter(include_in_schema=False)


@router.get("/")
def show_home() -> Response:
    """Send the browser to the board."""
    return RedirectResponse("/tickets", status_code=303)


@router.get("/tickets")
def show_board(request: Request, state: PageDep, user: UserDep, filters: Annotated[Filters, Query()]) -> Response:
    """Show the page, or only its board where the page itself refreshes it."""
    board = Board.of(state.review, filters, user=user.name, now=state.clock())
    template = "board.html" if "hx-request" in request.headers else "queue.html"
    return page(request, template, user=user, board=board)


@router.post("/tickets/next")
def claim_next(state: PageDep, user: ReviewerDep, queue: Annotated[str, Form()] = "") -> Response:
    """Claim the most urgent ticket that nobody has claimed, and show it."""
    ticket = state.review.claim_next(reviewer=user.name, queue=queue or None)
    url = Filters(queue=queue).url() if ticket is None else f"/tickets/{ticket.id}"
    return RedirectResponse(url, status_code=303)


@router.get("/tickets/{ticket}")
def show_ticket(request: Request, state: PageDep, user: UserDep, ticket: str) -> Response:
    """Show a ticket, at the address with its whole id."""
    whole = state.review.get(ticket).ticket.id
    if whole != ticket:
        return RedirectResponse(f"/tickets/{whole}", status_code=303)
    return _ticket_page(request, state, user, ticket)


@router.get("/tickets/{ticket}/state")
def show_ticket_state(request: Request, state: PageDep, user: UserDep, ticket: str, seen: int) -> Response:
    """Show the part of the page that others change: who has claimed the ticket, and whether it has ended."""
    record = state.review.get(ticket)
    return page(request, "ticket_state.html", user=user, record=record, now=state.clock(), seen=seen)


@router.post("/tickets/{ticket}/claim")
def claim(request: Request, state: PageDep, user: ReviewerDep, ticket: str) -> Response:
    """Claim a ticket, or renew the claim."""
    return _change(request, state, user, ticket, lambda: state.review.claim(ticket, reviewer=user.name))


@router.post("/tickets/{ticket}/release")
def release(request: Request, state: PageDep, user: ReviewerDep, ticket: str) -> Response:
    """Give a claimed ticket back."""
    return _change(request, state, user, ticket, lambda: state.review.release(ticket, reviewer=user.name))


@router.post("/tickets/{ticket}/verdict")
def resolve(
    request: Request,
    state: PageDep,
    user: ReviewerDep,
    ticket: str,
    verdict: Annotated[Verdict, Form()],
    version: Annotated[int, Form()],
    text: Annotated[str, Form()] = "",
    reason: Annotated[str, Form()] = "",
) -> Response:
    """End a ticket with a verdict on the version that the reviewer saw."""
    # Browsers end a form's lines with carriage returns.
    text, reason = text.replace("\r\n", "\n"), reason.replace("\r\n", "\n").strip()
    change = partial(
        state.review.resolve, ticket, verdict, text=text, reason=reason, reviewer=user.name, version=version
    )
    return _change(request, state, user, ticket, change, text=text, reason=reason)


def _change(
    request: Request, state: PageState, user: CurrentUser, ticket: str, change: Callable[[], object], **written: str
) -> Response:
    """Change a ticket and show it; where that is refused, with the reason and with what the reviewer had written."""
    try:
        change()
    except ReviewError as error:
        status, detail = status_and_detail(error)
        if status not in (400, 409):
            raise
        log_failure(request, error)
        return _ticket_page(request, state, user, ticket, status=status, alert=detail, **written)
    return RedirectResponse(f"/tickets/{ticket}", status_code=303)


def _ticket_page(
    request: Request,
    state: PageState,
    user: CurrentUser,
    ticket: str,
    *,
    status: int = 200,
    alert: str = "",
    text: str = "",
    reason: str = "",
) -> Response:
    record, policy = state.review.get(ticket), state.policy()
    view = ticket_view(record, policy=policy, typical_maps=state.typical_maps, now=state.clock())
    return page(request, "ticket.html", status=status, user=user, alert=alert, text=text, reason=reason, **view)
