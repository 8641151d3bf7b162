"""What the ticket page shows, made of a ticket's record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ilis_guard.policy import Policy
from ilis_guard.policy.explain import error_text
from ilis_guard.review import TicketRecord
from ilis_guard.review.record import judged_in
from ilis_guard.scoring import TypicalMaps
from ilis_guard.types import POSITIONS, ErrorInfo, Position
from ilis_guard_server.heat_map import HeatMap, Map, heat_map, marks, top_of
from ilis_guard_server.thresholds import Threshold, thresholds_of

_NAMES: Final[Mapping[Position, str]] = {
    "prompt": "Before the answer",
    "mean": "Over the whole answer",
    "last": "At the last token",
    "answer": "Over the marked span",
}
_ORDER: Final[Sequence[Position]] = ("mean", *(one for one in POSITIONS if one != "mean"), "answer")
"""The mean map says most, and comes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapGroup:
    """Maps side by side, on one scale of colours."""

    maps: tuple[HeatMap, ...]
    marks: tuple[float, float, float]
    """Of the scale, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownAttempt:
    """One tier's try."""

    number: int
    tier: str
    text: str
    stopped_at_prompt: bool
    """Whether a rule acted before a token was generated: there is no text because none was wanted."""
    is_cut_off: bool
    stopped_at: int | None
    """Its tokens where a stream cut it, because no rule would have answered: its uncertainty isn't calibrated."""
    error: str
    uncertainty: float | None
    typicality: float | None
    tokens: int
    seconds: float
    is_proposed: bool
    """Whether accepting the ticket accepts this answer."""
    maps: MapGroup | None
    """The mean map beside what is typical of right and of wrong answers; all its maps where that isn't known."""
    other_maps: MapGroup | None
    """Its other maps, where `maps` doesn't hold them all."""


def attempts_of(record: TicketRecord, typical: Mapping[str, TypicalMaps]) -> list[ShownAttempt]:
    """All attempts, in order, beside what is typical of their tiers."""
    proposed = judged_in(record.attempts)
    return [
        _shown(one, index, typical.get(one["tier"]), is_proposed=one is proposed)
        for index, one in enumerate(record.attempts)
    ]


def thresholds_for(record: TicketRecord, policy: Policy) -> Sequence[Threshold]:
    """The thresholds of the policy that escalated a ticket; none where another policy is in use by now."""
    return thresholds_of(policy) if policy.fingerprint == record.policy else ()


def _shown(attempt: Mapping[str, Any], index: int, typical: TypicalMaps | None, *, is_proposed: bool) -> ShownAttempt:
    own = {_NAMES[name]: attempt["signatures"][name] for name in _ORDER if name in attempt["signatures"]}
    beside = _comparable(attempt, typical)
    compared = {_NAMES["mean"]: own[_NAMES["mean"]], **beside} if beside else own
    return ShownAttempt(
        number=index + 1,
        tier=attempt["tier"],
        text=attempt["text"],
        stopped_at_prompt=attempt.get("stage") == "prompt",
        is_cut_off=attempt["finish_reason"] == "length",
        # Tickets of older releases hold nothing that a stream cut.
        stopped_at=attempt.get("stopped_at"),
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
    """The typical maps by name, where there is a map of the same kind and size to compare them with."""
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
