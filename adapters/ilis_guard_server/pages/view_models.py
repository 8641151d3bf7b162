"""View models of the reviewers' page: the board of tickets, and one ticket's attempts, maps and thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlencode

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ilis_guard.policy import Policy
from ilis_guard.policy.explain import attempt_reasons, error_text, uncalibrated_text
from ilis_guard.policy.syntax import is_plain, literals
from ilis_guard.review import QueueCounts, ReviewQueue, TicketRecord
from ilis_guard.review.record import judged_in
from ilis_guard.scoring import TypicalMaps
from ilis_guard.types import POSITIONS, STAGES, Attempt, Position, Ticket, TicketState
from ilis_guard.types.decisions import read_attempt
from ilis_guard.types.requests import nfc
from ilis_guard_server.pages.heat_map import HeatMap, Map, heat_map, marks, top_of

# The board.

MAX_TICKETS: Final = 500
"""On the board."""
_PROMPT_CHARACTERS: Final = 500
"""Of a prompt: two lines have no room for more, and every reviewer's browser loads the board again and again."""
_STATES: Final[tuple[TicketState, ...]] = ("open", "claimed", "resolved", "expired")


class Filters(BaseModel):
    """Which tickets the board shows, as query parameters."""

    model_config = ConfigDict(frozen=True)

    state: TicketState | Literal["all"] = "open"
    queue: Annotated[str, AfterValidator(nfc)] = ""
    """Empty for all queues."""
    mine: bool = False
    """Only tickets that the user has claimed, in any state."""
    overdue: bool = False
    """Only tickets that are overdue, in any state."""
    limit: int = Field(default=50, ge=1, le=MAX_TICKETS)

    def url(self, **changes: object) -> str:
        """The board's address with other filters."""
        values = self.model_copy(update=changes).model_dump(exclude_defaults=True)
        query = urlencode({name: "true" if value is True else value for name, value in values.items()})
        return f"/tickets?{query}" if query else "/tickets"

    def tickets(self, review: ReviewQueue, user: str, *, limit: int) -> Sequence[Ticket]:
        """At most so many tickets, the most urgent first."""
        is_any_state = self.mine or self.overdue or self.state == "all"
        return review.list(
            state=None if is_any_state else self.state,  # type: ignore[arg-type]  # "all" is any state
            queue=self.queue or None,
            claimed_by=user if self.mine else None,
            is_overdue=self.overdue,
            limit=limit,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tab:
    """A link that shows other tickets."""

    id: str
    name: str
    count: int
    url: str
    is_current: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """The board of tickets."""

    filters: Filters
    states: Sequence[Tab]
    queues: Sequence[Tab]
    tickets: Sequence[Ticket]
    prompts: Mapping[str, str]
    """How the prompts begin, by ticket."""
    has_more: bool
    now: float

    @property
    def summary(self) -> str:
        """The counts in a sentence, which screen readers read when it changes."""
        return ", ".join(f"{tab.count} {tab.name.lower()}" for tab in self.states if tab.id != "all")

    @classmethod
    def of(cls, review: ReviewQueue, filters: Filters, *, user: str, now: float) -> Self:
        """Read the board from the queue."""
        found = filters.tickets(review, user, limit=filters.limit + 1)
        tickets = found[: filters.limit]
        mine = len(filters.model_copy(update={"mine": True}).tickets(review, user, limit=MAX_TICKETS))
        counts = review.counts()
        prompts = review.prompts([ticket.id for ticket in tickets])
        return cls(
            filters=filters,
            states=_state_tabs(filters, [each for each in counts if filters.queue in ("", each.queue)], mine),
            queues=_queue_tabs(filters, counts),
            tickets=tickets,
            prompts={ticket: prompt[:_PROMPT_CHARACTERS] for ticket, prompt in prompts.items()},
            has_more=len(found) > filters.limit and filters.limit < MAX_TICKETS,
            now=now,
        )


def _state_tabs(filters: Filters, counts: Sequence[QueueCounts], mine: int) -> list[Tab]:
    current = "mine" if filters.mine else "overdue" if filters.overdue else filters.state
    totals = {name: sum(getattr(each, name) for each in counts) for name in (*_STATES, "overdue")}
    totals |= {"mine": mine, "all": sum(totals[state] for state in _STATES)}
    plain = Filters(queue=filters.queue)
    return [
        Tab(
            id=name,
            name=name.capitalize(),
            count=totals[name],
            url=plain.url(state=name) if name in (*_STATES, "all") else plain.url(**{name: True}),
            is_current=name == current,
        )
        for name in ("open", "mine", "claimed", "overdue", "resolved", "expired", "all")
    ]


def _queue_tabs(filters: Filters, counts: Sequence[QueueCounts]) -> list[Tab]:
    waiting = {each.queue: each.open + each.claimed for each in counts}
    if filters.queue:
        waiting.setdefault(filters.queue, 0)
    tabs = [("queue-all", "All queues", "", sum(waiting.values()))]
    tabs += [(f"queue-{number}", name, name, count) for number, (name, count) in enumerate(sorted(waiting.items()))]
    return [
        Tab(id=id_, name=name, count=count, url=filters.url(queue=queue), is_current=queue == filters.queue)
        for id_, name, queue, count in tabs
    ]


# One ticket.

_MAP_NAMES: Final[Mapping[Position, str]] = {
    "prompt": "Before the answer",
    "mean": "Over the whole answer",
    "last": "At the last token",
    "answer": "Over the marked span",
}
_MAP_ORDER: Final[Sequence[Position]] = ("mean", *(each for each in POSITIONS if each != "mean"), "answer")
"""The mean map says most, and comes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapGroup:
    """Maps side by side, on one scale of colours."""

    maps: tuple[HeatMap, ...]
    marks: tuple[float, float, float]
    """Of the scale, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """One tier's try."""

    number: int
    attempt: Attempt
    """Without its signatures."""
    error: str
    """Kind and details, for reviewers and operators."""
    uncalibrated: str
    """Why its uncertainty isn't calibrated, in a sentence; empty where it is, or there is none."""
    is_proposed: bool
    """Whether accepting the ticket accepts this answer."""
    maps: MapGroup | None
    """The mean map beside the typical ones of right and of wrong answers; all its maps where there are none."""
    other_maps: MapGroup | None
    """Its other maps, where `maps` doesn't hold them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A rule that compares the uncertainty with a number."""

    at: float
    """From 0 to 1."""
    rule: str
    when: str
    do: str


def ticket_view(
    record: TicketRecord, *, policy: Policy, typical_maps: Mapping[str, TypicalMaps], now: float
) -> dict[str, Any]:
    """A ticket as the template takes it; thresholds only where the policy in force is the one that escalated."""
    attempts, proposed = tuple(map(read_attempt, record.attempts)), judged_in(record.attempts)
    return {
        "record": record,
        "reasons": attempt_reasons(attempts, record.rulings),
        "attempts": [
            AttemptView(
                number=number,
                attempt=attempt,
                error="" if attempt.error is None else error_text(attempt.error),
                uncalibrated=uncalibrated_text(attempt.departures) if attempt.departures else "",
                is_proposed=values is proposed,
                **_map_groups(values["signatures"], typical_maps.get(attempt.tier)),
            )
            for number, (attempt, values) in enumerate(zip(attempts, record.attempts, strict=True), start=1)
        ],
        "thresholds": thresholds_of(policy) if policy.fingerprint == record.policy else (),
        "now": now,
        "seen": record.ticket.version,
    }


def thresholds_of(policy: Policy) -> Sequence[Threshold]:
    """The numbers that a policy's conditions compare the uncertainty with, from small to large."""
    found = [
        Threshold(at=float(at), rule=bound.rule.id, when=bound.rule.when, do=bound.rule.do.value)
        for stage in STAGES
        for bound in policy.bound_rules(stage)
        if bound.rule.when and is_plain(bound.condition.tree)
        for at in literals(bound.condition.tree).get("uncertainty") or ()
        if 0 < float(at) < 1
    ]
    return sorted(found, key=lambda threshold: threshold.at)


def _map_groups(signatures: Mapping[Position, Map], typical: TypicalMaps | None) -> dict[str, MapGroup | None]:
    own = {_MAP_NAMES[name]: signatures[name] for name in _MAP_ORDER if name in signatures}
    mean, compared = signatures.get("mean"), own
    # Maps of other sizes can't be compared.
    if typical is not None and mean is not None and len(mean) == len(typical.right):
        compared = {
            _MAP_NAMES["mean"]: mean,
            "Typical of right answers": typical.right,
            "Typical of wrong answers": typical.wrong,
        }
    others = {name: values for name, values in own.items() if name not in compared}
    return {"maps": _group(compared), "other_maps": _group(others)}


def _group(maps: Mapping[str, Map]) -> MapGroup | None:
    if not maps:
        return None
    top = top_of(list(maps.values()))
    return MapGroup(
        maps=tuple(heat_map(name, values, top=top) for name, values in maps.items()),
        marks=marks(top),
    )
