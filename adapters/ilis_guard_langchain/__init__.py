"""ilis_guard in LangChain: a guard around any runnable, as a runnable, as a chat model, and in an agent."""

from typing import TYPE_CHECKING, Any

from ilis_guard.errors import MissingDependencyError
from ilis_guard_langchain.chat import ChatIlisGuard
from ilis_guard_langchain.runnable import GuardedRunnable, GuardRunnable, Refused, wrap
from ilis_guard_langchain.tracing import feedback, trace_attempts

if TYPE_CHECKING:
    from ilis_guard_langchain.interrupts import thread_of
    from ilis_guard_langchain.middleware import IlisGuardMiddleware

__all__ = [
    "ChatIlisGuard",
    "GuardRunnable",
    "GuardedRunnable",
    "IlisGuardMiddleware",
    "Refused",
    "feedback",
    "thread_of",
    "trace_attempts",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Import what needs LangChain's agents and LangGraph (the extra `agents`) when it is used."""
    if name not in ("IlisGuardMiddleware", "thread_of"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ilis_guard_langchain import interrupts, middleware
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("langchain", "langgraph"):
            raise
        raise MissingDependencyError(
            f"{name} needs LangChain's agents and LangGraph ({error}); pip install 'ilis-guard[agents]'"
        ) from error
    return getattr(middleware if name == "IlisGuardMiddleware" else interrupts, name)
