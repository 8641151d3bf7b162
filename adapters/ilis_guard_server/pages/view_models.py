"""View models of the reviewers' page: the board of tickets, and one ticket's attempts, maps and thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field

from ilis_guard.policy import Policy
from ilis_guard.policy.explain import attempt_reasons, error_text
from ilis_guard.policy.syntax import is_plain, literals
from ilis_guard.review import QueueCounts, TicketRecord
from ilis_guard.review.record import judged_in
from ilis_guard.scoring import TypicalMaps
from ilis_guard.types import POSITIONS, STAGES, ErrorInfo, Position, Ticket, TicketState
from ilis_guard.types.decisions import read_attempt
from ilis_guard_server.dependencies import CurrentUser, PageState
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
    queue: str = ""
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

    def tickets(self, state: PageState, user: CurrentUser, *, limit: int) -> Sequence[Ticket]:
        """At most so many tickets, the most urgent first."""
        is_any_state = self.mine or self.overdue or self.state == "all"
        return state.review.list(
            state=None if is_any_state else self.state,  # type: ignore[arg-type]  # "all" is any state
            queue=self.queue or None,
            claimed_by=user.name if self.mine else None,
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
    def of(cls, state: PageState, user: CurrentUser, filters: Filters) -> Self:
        """Read the board from the queue."""
        found = filters.tickets(state, user, limit=filters.limit + 1)
        tickets = found[: filters.limit]
        mine = len(filters.model_copy(update={"mine": True}).tickets(state, user, limit=MAX_TICKETS))
        counts = state.review.counts()
        prompts = state.review.prompts([ticket.id for ticket in tickets])
        return cls(
            filters=filters,
            states=_state_tabs(filters, [each for each in counts if filters.queue in ("", each.queue)], mine),
            queues=_queue_tabs(filters, counts),
            tickets=tickets,
            prompts={ticket: prompt[:_PROMPT_CHARACTERS] for ticket, prompt in prompts.items()},
            has_more=len(found) > filters.limit and filters.limit < MAX_TICKETS,
            now=state.clock(),
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
    tier: str
    text: str
    stopped_at_prompt: bool
    """Whether a rule acted before a token was generated, so that there is no text."""
    is_cut_off: bool
    stopped_at: int | None
    """Its tokens where a stream cut it, because no rule would have answered: its uncertainty isn't calibrated."""
    error: str
    """Kind and details, for reviewers and operators."""
    uncertainty: float | None
    typicality: float | None
    tokens: int
    seconds: float
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


def ticket_view(record: TicketRecord, state: PageState) -> dict[str, Any]:
    """A ticket as the template takes it."""
    return {
        "record": record,
        "reasons": attempt_reasons(tuple(map(read_attempt, record.attempts)), record.rulings),
        "attempts": _attempt_views(record, state.typical_maps),
        "thresholds": _thresholds_of_record(record, state.policy()),
        "now": state.clock(),
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


def _thresholds_of_record(record: TicketRecord, policy: Policy) -> Sequence[Threshold]:
    """The thresholds of the policy that escalated a ticket; none where another policy is in force by now."""
    return thresholds_of(policy) if policy.fingerprint == record.policy else ()


def _attempt_views(record: TicketRecord, typical_maps: Mapping[str, TypicalMaps]) -> list[AttemptView]:
    proposed = judged_in(record.attempts)
    return [
        _attempt_view(attempt, number, typical_maps.get(attempt["tier"]), is_proposed=attempt is proposed)
        for number, attempt in enumerate(record.attempts, start=1)
    ]


def _attempt_view(
    attempt: Mapping[str, Any], number: int, typical: TypicalMaps | None, *, is_proposed: bool
) -> AttemptView:
    own = {_MAP_NAMES[name]: attempt["signatures"][name] for name in _MAP_ORDER if name in attempt["signatures"]}
    beside = _comparable(attempt, typical)
    compared = {_MAP_NAMES["mean"]: own[_MAP_NAMES["mean"]], **beside} if beside else own
    return AttemptView(
        number=number,
        tier=attempt["tier"],
        text=attempt["text"],
        stopped_at_prompt=attempt["stage"] == "prompt",
        is_cut_off=attempt["finish_reason"] == "length",
        stopped_at=attempt["stopped_at"],
        error="" if attempt["error"] is None else error_text(ErrorInfo(**attempt["error"])),
        uncertainty=attempt["uncertainty"],
        typicality=attempt["typicality"],
        tokens=attempt["tokens"],
        seconds=attempt["seconds"],
        is_proposed=is_proposed,
        maps=_group(compared),
        other_maps=_group({name: values for name, values in own.items() if name not in compared}),
    )


def _comparable(attempt: Mapping[str, Any], typical: TypicalMaps | None) -> Mapping[str, Map]:
    """The typical maps by name, where there is a mean map of the same size to compare them with."""
    mean = attempt["signatures"].get("mean")
    if typical is None or mean is None or len(mean) != len(typical.right):
        return {}
    return {"Typical of right answers": typical.right, "Typical of wrong answers": typical.wrong}


def _group(maps: Mapping[str, Map]) -> MapGroup | None:
    if not maps:
        return None
    top = top_of(list(maps.values()))
    return MapGroup(
        maps=tuple(heat_map(name, values, top=top) for name, values in maps.items()),
        marks=marks(top),
    )
