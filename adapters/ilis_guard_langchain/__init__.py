"""ilis_guard in LangChain: a guard as a runnable, and any runnable under a guard."""

from ilis_guard_langchain.guarded import GuardedRunnable
from ilis_guard_langchain.outputs import Refused
from ilis_guard_langchain.runnable import GuardRunnable
from ilis_guard_langchain.tracing import feedback, trace_attempts

__all__ = ["GuardRunnable", "GuardedRunnable", "Refused", "feedback", "trace_attempts"]
