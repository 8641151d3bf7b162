"""A guard in LangChain's agents, and in LangGraph: the extra ``agents``."""

from ilis_guard_langchain.agents.middleware import IlisGuardMiddleware
from ilis_guard_langchain.agents.reviewing import GivenVerdict, thread_of

__all__ = ["GivenVerdict", "IlisGuardMiddleware", "thread_of"]
