"""Tell exceptions that are to end the program from those that the code which runs raised itself."""

import signal
import threading
from types import CodeType


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception came from outside: from Ctrl-C, or from a handler of a signal, which may exit.

    Python raises both in the main thread, wherever that is. In any other thread, whoever runs there raised it. In the
    main thread a ``KeyboardInterrupt`` always counts as the user's.
    """
    kind = type(error)
    if issubclass(kind, Exception) or threading.current_thread() is not threading.main_thread():
        return False
    if issubclass(kind, KeyboardInterrupt):
        return True
    handlers, trace = _handlers(), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _handlers() -> set[CodeType]:
    """The code of all handlers of signals that are written in Python."""
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return {code for handler in handlers if isinstance(code := getattr(handler, "__code__", None), CodeType)}
