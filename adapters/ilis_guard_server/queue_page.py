"""The queue: who waits, the most urgent first, and how many of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import RedirectResponse, Response

from ilis_guard.review import QueueCounts
from ilis_guard.types import Ticket, TicketState
from ilis_guard_server.access import Reviewing, Visit, Visiting
from ilis_guard_server.house import House, TheHouse
from ilis_guard_server.pages import page

MOST: Final = 500
"""Tickets on a page."""
_SHOWN: Final = 500
"""Characters of a prompt: two lines have no room for more, and every reviewer's page asks for them again and again."""
_STATES: Final[tuple[TicketState, ...]] = ("open", "claimed", "resolved", "expired")

router = APIRouter(include_in_schema=False)


class Filters(BaseModel):
    """Which tickets are shown, as the page's address says it."""

    model_config = ConfigDict(frozen=True)

    state: TicketState | Literal["all"] = "open"
    queue: str = ""
    """Empty for all queues."""
    mine: bool = False
    """Those that the person has in hand, whatever `state` says."""
    overdue: bool = False
    """Those whose time is up, whatever `state` says."""
    limit: int = Field(default=50, ge=1, le=MOST)

    def url(self, **changes: object) -> str:
        """The page's address with other filters."""
        values = self.model_copy(update=changes).model_dump(exclude_defaults=True)
        query = urlencode({name: "true" if value is True else value for name, value in values.items()})
        return f"/tickets?{query}" if query else "/tickets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A link that shows other tickets."""

    id: str
    name: str
    count: int
    url: str
    is_chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What the page shows."""

    filters: Filters
    kinds: Sequence[Choice]
    queues: Sequence[Choice]
    tickets: Sequence[Ticket]
    prompts: Mapping[str, str]
    """How what was asked begins, by ticket."""
    has_more: bool
    now: float

    @property
    def said(self) -> str:
        """The counts in a sentence, which screen readers speak when it changes."""
        return ", ".join(f"{choice.count} {choice.name.lower()}" for choice in self.kinds if choice.id != "all")


@router.get("/")
def home() -> Response:
    """The queue is home."""
    return RedirectResponse("/tickets", status_code=303)


@router.get("/tickets")
def show_queue(request: Request, house: TheHouse, visit: Visiting, filters: Annotated[Filters, Query()]) -> Response:
    """The page, or only its board where the page itself asks for what is new."""
    template = "board.html" if "hx-request" in request.headers else "queue.html"
    return page(request, template, visit=visit, board=_board(house, visit, filters))


@router.post("/tickets/next")
def take_next(house: TheHouse, visit: Reviewing, queue: Annotated[str, Form()] = "") -> Response:
    """Claim the most urgent ticket that nobody has, and show it."""
    ticket = house.review.claim_next(reviewer=visit.person.name, queue=queue or None)
    url = Filters(queue=queue).url() if ticket is None else f"/tickets/{ticket.id}"
    return RedirectResponse(url, status_code=303)


def _board(house: House, visit: Visit, filters: Filters) -> Board:
    tickets = _listed(house, visit, filters, limit=filters.limit + 1)
    counts = house.review.counts()
    here = [one for one in counts if filters.queue in ("", one.queue)]
    shown = tickets[: filters.limit]
    mine = len(_listed(house, visit, filters.model_copy(update={"mine": True}), limit=MOST))
    return Board(
        filters=filters,
        kinds=_kinds(filters, here, mine),
        queues=_queues(filters, counts),
        tickets=shown,
        prompts={of: text[:_SHOWN] for of, text in house.review.prompts([one.id for one in shown]).items()},
        has_more=len(tickets) > filters.limit and filters.limit < MOST,
        now=house.clock(),
    )


def _listed(house: House, visit: Visit, filters: Filters, *, limit: int) -> Sequence[Ticket]:
    is_any_state = filters.mine or filters.overdue or filters.state == "all"
    return house.review.list(
        state=None if is_any_state else filters.state,  # type: ignore[arg-type]  # "all" is any state
        queue=filters.queue or None,
        claimed_by=visit.person.name if filters.mine else None,
        is_overdue=filters.overdue,
        limit=limit,
    )


def _kinds(filters: Filters, counts: Sequence[QueueCounts], mine: int) -> list[Choice]:
    chosen = "mine" if filters.mine else "overdue" if filters.overdue else filters.state
    totals = {name: sum(getattr(one, name) for one in counts) for name in (*_STATES, "overdue")}
    totals |= {"mine": mine, "all": sum(totals[state] for state in _STATES)}
    plain = Filters(queue=filters.queue)
    return [
        Choice(
            id=name,
            name=name.capitalize(),
            count=totals[name],
            url=plain.url(state=name) if name in (*_STATES, "all") else plain.url(**{name: True}),
            is_chosen=name == chosen,
        )
        for name in ("open", "mine", "claimed", "overdue", "resolved", "expired", "all")
    ]


def _queues(filters: Filters, counts: Sequence[QueueCounts]) -> list[Choice]:
    waiting = {one.queue: one.open + one.claimed for one in counts}
    if filters.queue and filters.queue not in waiting:
        waiting[filters.queue] = 0
    every = Choice(
        id="queue-all",
        name="All queues",
        count=sum(waiting.values()),
        url=filters.url(queue=""),
        is_chosen=not filters.queue,
    )
    return [
        every,
        *(
            Choice(
                id=f"queue-{number}",
                name=name,
                count=count,
                url=filters.url(queue=name),
                is_chosen=name == filters.queue,
            )
            for number, (name, count) in enumerate(sorted(waiting.items()))
        ),
    ]
