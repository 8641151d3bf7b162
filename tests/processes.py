"""Child processes of tests: they run a function and leave without a trace of pytest, or are killed on their way."""

import os
import signal
import traceback
from collections.abc import Callable
from typing import NoReturn

from sqlalchemy import Engine, event
from sqlalchemy.engine.default import DefaultDialect


def forked(run: Callable[[], object]) -> int:
    """Run a function in a child that is a copy of this process; the child's id."""
    child = os.fork()
    if child == 0:
        try:
            run()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing of pytest may run in the child
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def ended(child: int) -> int:
    """Wait for a child; its exit status, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die(*_: object, **__: object) -> NoReturn:
    """As kill -9 does it: no handler, no flush, no rollback."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody survives SIGKILL")


def die_before_commit() -> None:
    """From now on this process dies the moment it would commit."""
    event.listen(Engine, "commit", die)


def die_after_commit() -> None:
    """From now on this process dies the moment the database has committed."""
    commit = DefaultDialect.do_commit

    def commit_and_die(self: DefaultDialect, connection: object) -> None:
        commit(self, connection)  # type: ignore[no-untyped-call]  # SQLAlchemy's own method has no types
        die()

    DefaultDialect.do_commit = commit_and_die  # type: ignore[method-assign]


def die_after_write(number: int) -> None:
    """From now on this process dies after so many statements that write, inside their transaction."""
    left = [number]

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            left[0] -= 1
            if left[0] == 0:
                die()

    event.listen(Engine, "after_cursor_execute", count)
