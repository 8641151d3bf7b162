"""ilis_guard decides what to do with an LLM's answer: answer, abstain, retry on a larger model, or escalate.

    from ilis_guard import Guard

    guard = Guard.from_config("guard.yaml")
    decision = guard.decide("What is the capital of Norway?")

These are the public names, and nothing else. They are imported on first use: importing the package is quick, and
never imports torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ilis_guard.cascade.stream import Retraction, StreamEvent, TextDelta
    from ilis_guard.cascade.tier import Tier
    from ilis_guard.errors import IlisGuardError
    from ilis_guard.guard import Guard
    from ilis_guard.policy import Facts, Policy, Ruling
    from ilis_guard.review import ReviewQueue
    from ilis_guard.types import (
        Action,
        Attempt,
        Decision,
        Generation,
        Message,
        Request,
        Score,
        Statistics,
        StreamMode,
        Ticket,
        Verdict,
    )

__version__ = version("ilis-guard")

_HOMES = {
    "ilis_guard.errors": ("IlisGuardError",),
    "ilis_guard.guard": ("Guard",),
    "ilis_guard.policy": ("Facts", "Policy", "Ruling"),
    "ilis_guard.review": ("ReviewQueue",),
    "ilis_guard.cascade.stream": ("TextDelta", "Retraction", "StreamEvent"),
    "ilis_guard.cascade.tier": ("Tier",),
    "ilis_guard.types": (
        "Action",
        "Attempt",
        "Decision",
        "Generation",
        "Message",
        "Request",
        "Score",
        "Statistics",
        "StreamMode",
        "Ticket",
        "Verdict",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Action",
    "Attempt",
    "Decision",
    "Facts",
    "Generation",
    "Guard",
    "IlisGuardError",
    "Message",
    "Policy",
    "Request",
    "Retraction",
    "ReviewQueue",
    "Ruling",
    "Score",
    "Statistics",
    "StreamEvent",
    "StreamMode",
    "TextDelta",
    "Ticket",
    "Tier",
    "Verdict",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
