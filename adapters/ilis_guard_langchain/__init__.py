"""ilis_guard in LangChain: a guard as a runnable, and as a chat model."""

from ilis_guard_langchain.chat import ChatIlisGuard
from ilis_guard_langchain.runnable import GuardRunnable

__all__ = ["ChatIlisGuard", "GuardRunnable"]
