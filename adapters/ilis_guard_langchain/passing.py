"""Control flow that LangGraph raises: it passes through the guard, which takes no interrupt for a failure."""

import sys


class PassingError(BaseException):
    """Carries control flow past whatever turns a model's errors into an attempt's; so it is no Exception.

    Args:
        what: to be raised at the guarded runnable's edge, as it came.
    """

    def __init__(self, what: Exception) -> None:
        super().__init__()
        self.what = what


def is_control_flow(error: Exception) -> bool:
    """Whether this is no failure, but LangGraph on its way: an interrupt, a command to a parent graph."""
    # Whoever raises it has imported it.
    errors = sys.modules.get("langgraph.errors")
    return errors is not None and isinstance(error, errors.GraphBubbleUp)
