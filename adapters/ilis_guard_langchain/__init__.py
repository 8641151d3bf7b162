"""ilis_guard in LangChain: a guard as a runnable, as a chat model, around any runnable, and in an agent."""

from typing import TYPE_CHECKING, Any, Final

from ilis_guard.errors import MissingDependencyError
from ilis_guard_langchain.chat import ChatIlisGuard
from ilis_guard_langchain.guarded import GuardedRunnable
from ilis_guard_langchain.outputs import Refused
from ilis_guard_langchain.runnable import GuardRunnable
from ilis_guard_langchain.tracing import feedback, trace_attempts

if TYPE_CHECKING:
    from ilis_guard_langchain.agents import IlisGuardMiddleware, thread_of

__all__ = [
    "ChatIlisGuard",
    "GuardRunnable",
    "GuardedRunnable",
    "IlisGuardMiddleware",
    "Refused",
    "feedback",
    "thread_of",
    "trace_attempts",
]

_OF_AGENTS: Final = ("IlisGuardMiddleware", "thread_of")
"""They need LangChain's agents and LangGraph, which the rest runs without."""


def __getattr__(name: str) -> Any:
    if name not in _OF_AGENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ilis_guard_langchain import agents
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("langchain", "langgraph"):
            raise
        raise MissingDependencyError(
            f"{name} needs LangChain's agents and LangGraph ({error}); pip install 'ilis-guard[agents]'"
        ) from error
    return getattr(agents, name)
