"""Questions before they belong to a set: what makers of sets share."""

import random
from typing import Final, Literal

from ilis_guard.lab.questions import Question

DRAWN: Final = 2000
"""How many questions are drawn where there are too many to make them all."""
_UNNAMED: Final = "-"


def chance(set_: str) -> random.Random:
    """Return the random numbers of a set: the same ones each time."""
    return random.Random(set_)  # noqa: S311  # a sample, not a secret


def draft(
    question: str,
    *answers: str,
    kind: Literal["open", "numeric", "boolean", "literal"] = "open",
    context: str | None = None,
) -> Question:
    """Make a question without an id: `sets` draws a sample and gives ids."""
    return Question(id=_UNNAMED, kind=kind, question=question, context=context, answers=tuple(dict.fromkeys(answers)))


def truth_draft(question: str, truth: bool) -> Question:
    """Make a question of yes or no."""
    return draft(question, *(("yes", "true") if truth else ("no", "false")), kind="boolean")
