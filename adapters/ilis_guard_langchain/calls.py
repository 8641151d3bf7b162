"""One call of a guarded runnable: what its parts are run with, and what came of them."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import merge_configs

from ilis_guard.errors import ClientDisconnected, control_flow

T = TypeVar("T")

UNSEEN: Final = {"tags": ["nostream"]}
"""LangGraph streams the tokens of any model inside a node, unless it is tagged so: nothing is shown before the
decision."""


@dataclass(slots=True, kw_only=True)
class Call:
    """What the tiers' models need to know of the call that they answer, beyond the request."""

    given: Any
    """What goes into the part of the chain that is run in an attempt."""
    config: RunnableConfig
    """Of that part: a child of the guarded runnable's own run."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed on to that part."""
    loop: asyncio.AbstractEventLoop | None = None
    """Where what is awaited runs; None where the caller waits in its own thread."""
    problem: str = ""
    """Why the attempt has no score, whatever was answered."""
    reply: Any = None
    """The message, or text, of the chain's own model; None where it hasn't answered."""
    outputs: dict[str, Any] = field(default_factory=dict)
    """By tier: what its answer is when it comes out of the chain."""
    error: Exception | None = None
    """What the chain raised last."""
    _running: list[Future[Any]] = field(default_factory=list)
    _ended: bool = False

    def run(self, part: Runnable[Any, Any], given: Any, **kwargs: Any) -> Any:
        """Run a part of the chain, in this thread or on the caller's event loop, as the caller was called.

        Raises:
            ClientDisconnected: nobody waits for it any more.
            Exception: whatever else it raised, LangGraph's control flow too.
        """
        return self._kept(lambda: self._invoke(part, given, self.config, kwargs))

    def run_here(self, part: Runnable[Any, Any], given: Any, **kwargs: Any) -> Any:
        """As `run`, always in this thread: what listens to it hears no other."""
        return self._kept(lambda: part.invoke(given, self.config, **kwargs))

    def run_heard(self, part: Runnable[Any, Any], given: Any, by: BaseCallbackHandler, **kwargs: Any) -> Any:
        """As `run`, with one more who hears of what goes on inside."""
        config = merge_configs(self.config, {"callbacks": _with(self.config.get("callbacks"), by)})
        return self._kept(lambda: self._invoke(part, given, config, kwargs))

    def end(self) -> None:
        """End what still runs on the event loop: nobody waits for it any more."""
        self._ended = True
        for running in self._running:
            running.cancel()

    def _invoke(self, part: Runnable[Any, Any], given: Any, config: RunnableConfig, kwargs: dict[str, Any]) -> Any:
        if self.loop is None:
            return part.invoke(given, config, **kwargs)
        running = asyncio.run_coroutine_threadsafe(part.ainvoke(given, config, **kwargs), self.loop)
        self._running.append(running)
        return running.result()

    def _kept(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except control_flow():
            raise
        except Exception as error:
            if self._ended:
                # No larger tier is asked, and no ticket is made.
                raise ClientDisconnected("whoever called the chain has been cancelled") from None
            self.error = error
            raise


CURRENT: Final[ContextVar[Call]] = ContextVar("ilis_guard_langchain.call")
"""The call that is being answered. Threads that a guard starts for it have it too."""


def silent(config: RunnableConfig) -> RunnableConfig:
    """A config whose models' tokens LangGraph doesn't stream."""
    return merge_configs(config, UNSEEN)  # type: ignore[arg-type]  # a part of a config is one


async def in_a_thread(work: Callable[[], T]) -> T:
    """Do some work in a thread of its own, with the caller's context variables, while the event loop goes on.

    Not in the loop's pool: the work waits for what runs on the loop, which may wait for the pool in its turn.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller must hear of it
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=copy_context().run, args=(run,), name="ilis-guard-call", daemon=True).start()
    return await done


def _with(callbacks: Any, handler: BaseCallbackHandler) -> Any:
    if isinstance(callbacks, BaseCallbackManager):
        heard = callbacks.copy()
        heard.add_handler(handler, inherit=True)
        return heard
    others: Sequence[BaseCallbackHandler] = callbacks or ()
    return [*others, handler]
