"""Forms of short texts with places for numbers and words: from them questions about code are drawn."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from benchmarks.laboratory.drafts import DRAWN, chance

Draw = Callable[[random.Random], object]
"""Draws what stands in a place of a form."""
Form = Callable[[random.Random], str]
"""Draws a text of one form."""

# fmt: off
WORDS: Final = (
    "apple", "autumn", "banana", "basket", "bridge", "butter", "candle", "carrot", "castle", "cheese", "circle",
    "coffee", "copper", "cotton", "desert", "dinner", "dragon", "engine", "family", "finger", "flower", "forest",
    "garden", "guitar", "hammer", "harbor", "island", "jacket", "kitchen", "ladder", "lemon", "letter", "market",
    "meadow", "melon", "mirror", "monkey", "morning", "needle", "number", "orange", "office", "paper", "pencil",
    "pepper", "planet", "pocket", "rabbit", "river", "rocket", "school", "shadow", "silver", "spider", "summer",
    "table", "ticket", "tunnel", "valley", "velvet", "village", "violin", "walnut", "window", "winter", "yellow",
)
# fmt: on


def form(text: str, *draws: Draw) -> Form:
    """Make a form of a text with a ``{}`` for each draw."""
    return lambda dice: text.format(*(draw(dice) for draw in draws))


def number(least: int, most: int) -> Draw:
    """Draw a whole number."""
    return lambda dice: dice.randint(least, most)


def numbers(count: int, most: int = 9) -> Draw:
    """Draw a list of whole numbers from 1 on."""
    return lambda dice: [dice.randint(1, most) for _ in range(count)]


def one_of(choices: Sequence[str]) -> Draw:
    """Draw one of several texts, or of the characters of one."""
    return lambda dice: dice.choice(choices)


def word(dice: random.Random) -> str:
    """Draw a word."""
    return dice.choice(WORDS)


def in_turn(set_: str, forms: Sequence[Form]) -> Iterator[str]:
    """Draw texts of all forms in turn."""
    dice = chance(set_)
    for index in range(DRAWN):
        yield forms[index % len(forms)](dice)


def in_turn_by_answer(set_: str, forms: Mapping[str, Sequence[Form]]) -> Iterator[tuple[str, str]]:
    """Draw texts for all answers in turn, each with its answer: so no answer is right more often than another."""
    dice = chance(set_)
    for answer, of_answer in list(forms.items()) * (DRAWN // len(forms)):
        yield dice.choice(of_answer)(dice), answer
