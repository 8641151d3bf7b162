"""Program exit: daemon threads that compute stop at their next token before the interpreter ends them.

The interpreter ends daemon threads wherever they are. Inside torch's code that aborts the process ("terminate called
without an active exception"), and the parent process sees a crash.
"""

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

MAX_WAIT: Final = 10.0
"""Seconds that the exit waits at most: the pass over a prompt can't be interrupted, however long it is."""

_changed = threading.Condition()
_computing = 0
_is_exiting = False


@contextmanager
def delay_exit() -> Iterator[None]:
    """Let the program's exit wait for a generation, in any thread, until it calls `block_at_exit` or ends."""
    _count(1)
    try:
        block_at_exit()
        yield
    finally:
        _count(-1)


def block_at_exit() -> None:
    """Between two passes of a generation: block a daemon thread for ever if the program is exiting."""
    # Other threads were joined before: one that computes now was called by an exit handler.
    if _is_exiting and threading.current_thread().daemon:
        _count(-1)
        threading.Event().wait()


def _count(change: int) -> None:
    global _computing  # noqa: PLW0603 - of the whole program
    with _changed:
        _computing += change
        _changed.notify_all()


@atexit.register
def _exit() -> None:
    global _is_exiting  # noqa: PLW0603 - the program ends once
    with _changed:
        _is_exiting = True
        _changed.wait_for(lambda: not _computing, timeout=MAX_WAIT)
