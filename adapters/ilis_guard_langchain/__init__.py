"""ilis_guard in LangChain: a guard as a runnable."""

from ilis_guard_langchain.runnable import GuardRunnable

__all__ = ["GuardRunnable"]
