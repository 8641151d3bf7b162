"""Who says whether an answer is right: the rules of `matching`, or a callable of the user's own."""

from collections.abc import Callable
from typing import Final

from ilis_guard.config.imports import import_string
from ilis_guard.errors import QuestionError
from ilis_guard.lab.matching import is_correct
from ilis_guard.lab.questions import Question

Judge = Callable[[Question, str], bool]
"""Told a question and an answer's text: whether it is right."""
RULES: Final = "rules"
"""The name of `is_correct` in a manifest."""


def load_judge(path: str | None) -> tuple[str, Judge]:
    """A judge and its name.

    Args:
        path: ``package.module:function``; None for the rules.

    Raises:
        QuestionError: the path leads to nothing that can be called.
    """
    if path is None:
        return RULES, is_correct
    found = import_string(path, what="judge", kind="function", error=QuestionError)
    if not callable(found):
        raise QuestionError(f"the judge {path!r} is a {type(found).__name__}, which can't be called")
    return path, found


def judged(judge: Judge, asked: Question, text: str) -> bool:
    """What a judge says.

    Raises:
        QuestionError: it says neither True nor False, or fails; the message names the question, not the answer.
    """
    try:
        said = judge(asked, text)
    except Exception as error:
        # What it raised may quote the answer: that stands in the traceback, and not in the message.
        raise QuestionError(f"the judge failed at the question {asked.id!r}: {type(error).__name__}") from error
    if not isinstance(said, bool):
        raise QuestionError(
            f"the judge must say True or False, and said a {type(said).__name__} of the question {asked.id!r}"
        )
    return said
