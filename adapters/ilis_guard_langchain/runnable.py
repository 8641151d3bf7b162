"""A guard as the last step of a chain: what a chat model takes goes in, a decision comes out."""

from functools import partial
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable, RunnableConfig

from ilis_guard import Decision, Guard
from ilis_guard.types import Labels
from ilis_guard_langchain.messages import to_messages


class GuardRunnable(Runnable[LanguageModelInput, Decision]):
    """Stands where a chat model would: ``prompt | GuardRunnable(guard)``.

    An abstention or an escalation is a value, not an exception, so that ``with_fallbacks`` doesn't swallow it.

    Args:
        guard: what decides.
        labels: what the policy's conditions see as ``labels.NAME``; a call may bring more:
            ``invoke(..., labels={...})`` or ``bind(labels={...})``.
    """

    def __init__(self, guard: Guard, *, labels: Labels | None = None) -> None:
        self._guard = guard
        self._labels = labels

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        labels: Labels | None = None,
        **unknown: Any,
    ) -> Decision:
        """Decide.

        Raises:
            RequestError: the input holds no prompt, or a message that isn't text by a user, an assistant or a system.
        """
        _refuse(unknown)
        return self._call_with_config(partial(self._decide, labels=labels), input, config, run_type="chain")

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        labels: Labels | None = None,
        **unknown: Any,
    ) -> Decision:
        """As `invoke`; the event loop goes on meanwhile."""
        _refuse(unknown)
        return await self._acall_with_config(partial(self._adecide, labels=labels), input, config, run_type="chain")

    def _decide(self, given: LanguageModelInput, *, labels: Labels | None) -> Decision:
        return self._guard.decide(to_messages(given), labels=self._all(labels))

    async def _adecide(self, given: LanguageModelInput, *, labels: Labels | None) -> Decision:
        return await self._guard.adecide(to_messages(given), labels=self._all(labels))

    def _all(self, labels: Labels | None) -> Labels:
        return {**(self._labels or {}), **(labels or {})}


def _refuse(unknown: dict[str, Any]) -> None:
    """A misspelt `labels` that is swallowed would open a gate."""
    if unknown:
        raise TypeError(f"a guard takes the keyword 'labels' and no other, got {sorted(unknown)!r}")
