"""LangChain's own tests of its integrations, and which of them aren't for ours.

A class of theirs names in `NOT_FOR_US` each test that it leaves out, with the reason; `tests/adapters/conftest.py`
skips those, and fails every other that skips itself.
"""

from typing import ClassVar

TOOLS = "a guard decides on answers, and a tool call is none: `bind_tools` is refused, see test_chat_messages.py"
STRUCTURE = "a guard's models are held to no schema: `with_structured_output` is refused, see test_chat_messages.py"
TEXT_ONLY = "a guard takes text: other parts of a message are refused, see test_chat_messages.py"
OTHER_MODEL = "which models there are is the operator's guard.yaml: a call can't name another (TypeError)"
NO_RECORDINGS = "nothing is asked over the network, so that no recording can stand in for it"


class Standard:
    """Base of our classes of LangChain's tests."""

    NOT_FOR_US: ClassVar[dict[str, str]] = {}
    """By the test's name, why not."""
