"""What the routers share, and how they get at it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from ilis_guard.config.review import PageSettings
from ilis_guard.policy import Policy
from ilis_guard.review import ReviewQueue
from ilis_guard.scoring import TypicalMaps
from ilis_guard_server.people import People
from ilis_guard_server.sessions import Sessions, SignInLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """One application's queue, people and policy."""

    review: ReviewQueue
    page: PageSettings
    in_force: Callable[[], Policy]
    """The policy in use now: its thresholds are shown on tickets that it escalated."""
    typical: Mapping[str, TypicalMaps]
    """What right and wrong answers look like inside, by tier; tiers without are left out."""
    clock: Callable[[], float]
    """Seconds since the epoch, as the queue's."""
    people: People
    sessions: Sessions
    sign_in_limit: SignInLimit


def house_of(request: Request) -> House:
    """The application's house."""
    house: House = request.app.state.house
    return house


TheHouse = Annotated[House, Depends(house_of)]
