"""The end of the program: generations that threads were left behind with stand still at their next token before it.

The interpreter ends a thread that is left behind wherever it is. In the middle of torch's code that takes the process
down ("terminate called without an active exception"), and whatever started it sees a crash.
"""

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LONGEST: Final = 10.0
"""Seconds, at most, that the program's end waits for: a prompt's pass is one step, however long it is."""

_changed = threading.Condition()
_computing = 0
_is_ending = False


@contextmanager
def generation() -> Iterator[None]:
    """Around the work of torch, in whichever thread."""
    _count(1)
    try:
        pause()
        yield
    finally:
        _count(-1)


def pause() -> None:
    """Between two passes of a generation: where the program ends, a thread that was left behind goes no further."""
    # All others were waited for before: one that computes now is asked to by the program's end itself.
    if _is_ending and threading.current_thread().daemon:
        _count(-1)
        threading.Event().wait()


def _count(change: int) -> None:
    global _computing  # noqa: PLW0603 - of the whole program
    with _changed:
        _computing += change
        _changed.notify_all()


@atexit.register
def _end() -> None:
    global _is_ending  # noqa: PLW0603 - the program ends once
    with _changed:
        _is_ending = True
        _changed.wait_for(lambda: not _computing, timeout=LONGEST)
