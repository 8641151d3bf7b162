"""What callers may say of a request in labels: short words and numbers, under names that a policy can write."""

import math
from collections.abc import Mapping
from typing import Final

MOST: Final = 100
"""Labels of one request."""
LONGEST_NAME: Final = 100
"""Characters."""
LONGEST: Final = 2_000
"""Characters of a label that is a string. Conditions look at labels in every decision, so they stay short."""
LARGEST: Final = 2**63 - 1
"""Of whole numbers: conditions have 64 bits for them."""


class CheckedLabels(dict[str, str | int | float | bool]):
    """Labels that `problem` found nothing wrong with, so that nobody checks them again."""


def problem(labels: Mapping[str, object]) -> str:
    """What is wrong with labels; empty where nothing is."""
    if isinstance(labels, CheckedLabels):
        return ""
    if len(labels) > MOST:
        return f"there are {len(labels)} labels; a request has at most {MOST}"
    return next((what for name, value in labels.items() if (what := _problem(name, value))), "")


def _problem(name: object, value: object) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        return f"the label name {_short(name)} isn't an identifier; policies say labels.NAME"
    if len(name) > LONGEST_NAME:
        return f"the label name {_short(name)} has {len(name)} characters; it may have {LONGEST_NAME}"
    if isinstance(value, str):
        return _problem_of_text(name, value)
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"the label {name!r} is a number of more than 64 bits; write it as a string"
    if not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value)):
        return f"the label {name!r} is a {type(value).__name__}; a label is a string, a boolean or a finite number"
    return ""


def _problem_of_text(name: str, value: str) -> str:
    if len(value) > LONGEST:
        return f"the label {name!r} has {len(value)} characters; it may have {LONGEST}"
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return f"the label {name!r} has half a character (a lone surrogate) in it; send whole ones"
    return ""


def _short(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 60 else f"{text[:57]}..."
